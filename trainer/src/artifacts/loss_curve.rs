//! `loss_curve.svg`: losses over optimiser steps, with the learning rate on an axis of its own.

use std::{ops::Range, path::Path};

use plotters::{chart::DualCoordChartContext, coord::types::RangedCoordf64, prelude::*};

use super::atomic;
use crate::{Error, Result};

/// A value at an optimiser step.
pub type Point = (u64, f64);

/// What the picture shows.
#[derive(Debug, Clone, Default)]
pub struct CurveSeries {
    /// Title of the picture.
    pub title: String,
    /// Loss of each step.
    pub training: Vec<Point>,
    /// Smoothed loss of each step.
    pub smoothed: Vec<Point>,
    /// Validation loss, wherever it was measured.
    pub validation: Vec<Point>,
    /// Learning rate of each step.
    pub learning_rate: Vec<Point>,
}

const SIZE: (u32, u32) = (960, 540);
const INK: RGBColor = RGBColor(60, 64, 72);
const GRID: RGBColor = RGBColor(228, 230, 235);
const LOSS: RGBColor = RGBColor(31, 98, 178);
const VALIDATION: RGBColor = RGBColor(202, 80, 16);
const RATE: RGBColor = RGBColor(128, 134, 145);

/// Draws the picture. Values that are not finite are left out.
pub fn write(path: &Path, series: &CurveSeries) -> Result<()> {
    let mut svg = String::new();
    draw(&mut svg, series).map_err(|error| Error::file(path, format!("the curve cannot be drawn: {error}")))?;
    atomic::write(path, svg.as_bytes())
}

type Canvas<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type DrawResult<'a> = std::result::Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;
type Axes = Cartesian2d<RangedCoordf64, RangedCoordf64>;
type Chart<'a, 'b> = DualCoordChartContext<'a, SVGBackend<'b>, Axes, Axes>;

fn draw<'a>(svg: &'a mut String, series: &CurveSeries) -> DrawResult<'a> {
    let canvas = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    canvas.fill(&WHITE)?;
    let (head, plot) = canvas.margin(14, 8, 12, 12).split_vertically(64);
    draw_title(&head, &series.title)?;
    draw_legend(&head, series)?;
    draw_plot(&plot, series)?;
    canvas.present()
}

fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

fn draw_title<'a>(head: &Canvas<'a>, title: &str) -> DrawResult<'a> {
    head.draw(&Text::new(title.to_owned(), (4, 0), text(22)))
}

/// One row above the plot, where no line can pass under it.
fn draw_legend<'a>(head: &Canvas<'a>, series: &CurveSeries) -> DrawResult<'a> {
    let entries = [
        (!series.training.is_empty(), "training loss, each step", LOSS.mix(0.45), 1),
        (!series.smoothed.is_empty(), "training loss, smoothed", LOSS.to_rgba(), 3),
        (!series.validation.is_empty(), "validation loss", VALIDATION.to_rgba(), 0),
        (!series.learning_rate.is_empty(), "learning rate (right axis)", RATE.to_rgba(), 1),
    ];
    for (slot, (_, name, colour, width)) in entries.iter().filter(|(present, ..)| *present).enumerate() {
        let x = 4 + 228 * slot as i32;
        if *width == 0 {
            head.draw(&Circle::new((x + 14, 44), 4, colour.filled()))?;
        } else {
            head.draw(&PathElement::new([(x, 44), (x + 28, 44)], colour.stroke_width(*width)))?;
        }
        head.draw(&Text::new((*name).to_owned(), (x + 36, 37), text(14)))?;
    }
    Ok(())
}

fn draw_plot<'a>(plot: &Canvas<'a>, series: &CurveSeries) -> DrawResult<'a> {
    let losses = [&series.training, &series.smoothed, &series.validation];
    let steps = padded(losses.iter().flat_map(|points| finite(points)).map(|(step, _)| step), 0.0, 1.0);
    let loss = padded(losses.iter().flat_map(|points| finite(points)).map(|(_, value)| value), 0.06, 1.0);
    let peak = finite(&series.learning_rate).map(|(_, value)| value).fold(0.0, f64::max);
    // Head room keeps a constant rate off the frame.
    let rate = 0.0..if peak > 0.0 { peak * 1.15 } else { 1.0 };
    let mut builder = ChartBuilder::on(plot);
    builder.x_label_area_size(44).y_label_area_size(58);
    if peak > 0.0 {
        builder.right_y_label_area_size(78);
    }
    let mut chart = builder.build_cartesian_2d(steps.clone(), loss)?.set_secondary_coord(steps.clone(), rate);
    draw_axes(&mut chart, steps.end - steps.start, peak > 0.0)?;
    let line = |points: &[Point], style: ShapeStyle| LineSeries::new(finite(points).collect::<Vec<_>>(), style);
    chart.draw_secondary_series(line(&series.learning_rate, RATE.stroke_width(1)))?;
    chart.draw_series(line(&series.training, LOSS.mix(0.45).stroke_width(1)))?;
    chart.draw_series(line(&series.smoothed, LOSS.stroke_width(3)))?;
    // A single step makes no line.
    if series.smoothed.len() == 1 {
        chart.draw_series(finite(&series.smoothed).map(|point| Circle::new(point, 4, LOSS.filled())))?;
    }
    chart.draw_series(finite(&series.validation).map(|point| Circle::new(point, 4, VALIDATION.filled())))?;
    Ok(())
}

fn draw_axes<'a>(chart: &mut Chart<'_, 'a>, steps: f64, with_rate: bool) -> DrawResult<'a> {
    chart
        .configure_mesh()
        .x_desc("optimiser step")
        .y_desc("loss (nats per token)")
        .label_style(text(13))
        .axis_desc_style(text(14))
        .axis_style(INK.mix(0.6))
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        // No more labels than whole steps: there is nothing between two of them.
        .x_labels((steps as usize + 1).min(12))
        .x_label_formatter(&|step| if step.fract() == 0.0 { format!("{step:.0}") } else { String::new() })
        .y_label_formatter(&|loss| format!("{loss:.2}"))
        .draw()?;
    if with_rate {
        chart
            .configure_secondary_axes()
            .y_desc("learning rate")
            .label_style(text(13))
            .axis_desc_style(text(14))
            .axis_style(INK.mix(0.6))
            .y_labels(6)
            .y_label_formatter(&|rate| if *rate == 0.0 { "0".into() } else { format!("{rate:.1e}") })
            .draw()?;
    }
    Ok(())
}

fn finite(points: &[Point]) -> impl Iterator<Item = (f64, f64)> + '_ {
    points.iter().filter(|(_, value)| value.is_finite()).map(|&(step, value)| (step as f64, value))
}

/// The range of some values with `margin` of it on both sides; one value alone gets `room` on both sides.
fn padded(values: impl Iterator<Item = f64>, margin: f64, room: f64) -> Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return 0.0..room;
    }
    match high - low {
        0.0 => low - room..high + room,
        span => low - span * margin..high + span * margin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(series: &CurveSeries) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss_curve.svg");
        write(&path, series).unwrap();
        std::fs::read_to_string(path).unwrap()
    }

    fn falling(steps: u64) -> CurveSeries {
        let points = |f: fn(u64) -> f64| (1..=steps).map(|step| (step, f(step))).collect::<Vec<_>>();
        CurveSeries {
            title: "demo: loss".into(),
            training: points(|step| 3.0 + 4.0 / step as f64 + 0.3 * ((step * 7919) % 13) as f64 / 13.0),
            smoothed: points(|step| 3.15 + 4.0 / step as f64),
            validation: (1..=steps).filter(|step| step % 10 == 0).map(|s| (s, 3.4 + 4.0 / s as f64)).collect(),
            learning_rate: points(|step| 1e-2 * (1.0 - (step as f64 - 10.0).abs() / 100.0)),
        }
    }

    #[test]
    fn the_picture_names_everything_it_shows() {
        let svg = drawn(&falling(72));
        for text in [
            "demo: loss",
            "optimiser step",
            "loss (nats per token)",
            "training loss, each step",
            "training loss, smoothed",
            "validation loss",
            "learning rate (right axis)",
        ] {
            assert!(svg.contains(text), "{text:?} is missing");
        }
        assert!(svg.trim_end().ends_with("</svg>"));
        assert_eq!(svg.matches("<circle").count(), 7 + 1, "seven measurements and the legend's own mark");
    }

    #[test]
    fn what_is_absent_is_not_in_the_legend() {
        let svg = drawn(&CurveSeries { validation: vec![], learning_rate: vec![], ..falling(20) });
        assert!(!svg.contains("validation loss") && !svg.contains("learning rate"));
    }

    #[test]
    fn one_point_no_point_and_numbers_that_are_none_do_no_harm() {
        assert!(drawn(&falling(1)).contains("<circle"));
        drawn(&CurveSeries::default());
        let broken = vec![(1, f64::NAN), (2, f64::INFINITY), (3, 2.0)];
        let svg = drawn(&CurveSeries { training: broken.clone(), smoothed: broken, ..CurveSeries::default() });
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
