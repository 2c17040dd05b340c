//! Where everything in the picture stands.

use super::{
    axis::{Axis, Style, Tick, grouped},
    series::{CurveSeries, Point, short, thinned},
};
use crate::{
    Result,
    artifacts::picture::{Anchor, Colour, Font, Picture, Place, Shape, Stroke},
};

const SIZE: (u32, u32) = (960, 540);
/// Left and right edge of the plot; to the right is the learning rate's axis.
const ACROSS: (f64, f64) = (72.0, 876.0);
/// Lower and upper edge of the plot.
const UPWARDS: (f64, f64) = (482.0, 110.0);
const MARGIN: f64 = 20.0;

const INK: Colour = Colour::solid(38, 42, 51);
const SOFT_INK: Colour = Colour::solid(94, 101, 114);
const GRID: Colour = Colour::solid(230, 232, 237);
const LOSS: Colour = Colour::solid(31, 98, 178);
const PALE_LOSS: Colour = LOSS.faint(0.38);
const VALIDATION: Colour = Colour::solid(202, 80, 16);
const RATE: Colour = Colour::solid(122, 129, 142);
const PAPER: Colour = Colour::solid(255, 255, 255);

const TITLE_SIZE: f64 = 20.0;
const TEXT_SIZE: f64 = 13.0;

/// Up to so many points a line shows each of them.
const MAX_DOTS: usize = 30;
/// Up to so many points the smoothed line is drawn bold.
const MAX_BOLD: usize = 2000;
/// Up to so many validations each has its circle.
const MAX_CIRCLES: usize = 120;
/// A loss so many times as far above the lowest as 98 of 100 losses are is a spike: it is cut off, and said.
const SPIKE: f64 = 6.0;
/// How much higher than 98 of 100 losses the paper is then, from the lowest one on.
const SPIKE_ROOM: f64 = 1.3;
/// Share of the losses' range that is left free above and below.
const AIR: f64 = 0.06;

/// Lays the picture out; `words` says what it shows.
pub(super) fn picture(series: &CurveSeries, words: &str) -> Result<Picture> {
    let font = Font::new()?;
    let width = f64::from(SIZE.0);
    let title = font.fit(&series.title, TITLE_SIZE, width - 2.0 * MARGIN);
    let mut sheet = Sheet { font, shapes: Vec::new() };
    sheet.text("title", (MARGIN, 34.0), title, TITLE_SIZE, INK, Anchor::Start);
    let shown = sheet.font.fit(words, TEXT_SIZE, width - 2.0 * MARGIN);
    sheet.text("words", (MARGIN, 57.0), shown, TEXT_SIZE, SOFT_INK, Anchor::Start);
    match Plot::new(series) {
        Some(plot) => {
            sheet.legend(series, plot.rate.is_some());
            sheet.axes(&plot);
            sheet.lines(series, &plot);
        }
        None => {
            let middle = ((ACROSS.0 + ACROSS.1) / 2.0, (UPWARDS.0 + UPWARDS.1) / 2.0);
            sheet.text("words", middle, "no loss was measured".into(), 16.0, SOFT_INK, Anchor::Middle);
        }
    }
    let (width, height) = SIZE;
    Ok(Picture { width, height, title: series.title.clone(), description: words.to_owned(), shapes: sheet.shapes })
}

/// The axes that hold all lines.
struct Plot {
    steps: Axis,
    /// The first and the last step; the axis of one step alone is longer.
    measured: (u64, u64),
    loss: Axis,
    /// Where there is a learning rate above 0.
    rate: Option<Axis>,
    /// The highest loss, where it is cut off.
    spike: Option<Point>,
}

/// What is drawn so far.
struct Sheet {
    font: Font,
    shapes: Vec<Shape>,
}

// === impl Plot ===

impl Plot {
    fn new(series: &CurveSeries) -> Option<Self> {
        let points = || [&series.training, &series.smoothed, &series.validation].into_iter().flatten();
        let first = points().map(|point| point.0).min()?;
        let last = points().map(|point| point.0).max()?;
        let highest = *points().reduce(|high, next| if next.1 > high.1 { next } else { high })?;
        let lowest = points().map(|point| point.1).fold(f64::INFINITY, f64::min);
        let most = most(points().map(|point| point.1).collect());
        let spike = (highest.1 - lowest > SPIKE * (most - lowest) && most > lowest).then_some(highest);
        let top = if spike.is_some() { lowest + SPIKE_ROOM * (most - lowest) } else { highest.1 };
        // One step alone stands in the middle.
        let room = if first == last { 1.0 } else { 0.0 };
        let peak = series.learning_rate.iter().map(|point| point.1).fold(0.0, f64::max);
        Some(Self {
            steps: Axis { numbers: (first as f64 - room, last as f64 + room), paper: ACROSS },
            measured: (first, last),
            loss: Axis { numbers: with_air(lowest, top), paper: UPWARDS },
            // Head room keeps a constant rate off the frame.
            rate: (peak > 0.0).then_some(Axis { numbers: (0.0, peak * 1.12), paper: UPWARDS }),
            spike,
        })
    }

    /// A line on the paper, in pieces where it leaves at the top.
    fn pieces(&self, points: &[Point], axis: &Axis) -> Vec<Vec<Place>> {
        let limit = axis.paper.1;
        let mut pieces: Vec<Vec<Place>> = Vec::new();
        let mut before: Option<Place> = None;
        for &(step, value) in points {
            let here = (self.steps.place(step as f64), axis.place(value));
            let inside = here.1 >= limit;
            let was_inside = before.is_some_and(|before| before.1 >= limit);
            if !was_inside {
                pieces.push(Vec::new());
            }
            if let (Some(before), Some(piece)) = (before, pieces.last_mut())
                && inside != was_inside
            {
                piece.push(crossing(before, here, limit));
            }
            if let (true, Some(piece)) = (inside, pieces.last_mut()) {
                piece.push(here);
            }
            before = Some(here);
        }
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }
}

/// Where the way from one place to another is at this height.
fn crossing(from: Place, to: Place, height: f64) -> Place {
    (from.0 + (to.0 - from.0) * (height - from.1) / (to.1 - from.1), height)
}

/// What 98 of 100 values do not exceed; where there are few, the greatest.
fn most(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let rank = (values.len() * 98).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// The range with room above and below; a loss is never below 0.
fn with_air(low: f64, high: f64) -> (f64, f64) {
    let air = match high - low {
        span if span > 1e-9 * high.abs() => span * AIR,
        _ => (high.abs() * 0.1).max(0.05),
    };
    let below = low - air;
    (if low >= 0.0 { below.max(0.0) } else { below }, high + air)
}

// === impl Sheet ===

impl Sheet {
    fn text(&mut self, name: &'static str, place: Place, text: String, size: f64, colour: Colour, anchor: Anchor) {
        self.shapes.push(Shape::Text { name, place, text, size, colour, anchor, upward: false });
    }

    fn line(&mut self, name: &'static str, points: Vec<Place>, stroke: Stroke) {
        self.shapes.push(Shape::Line { name, points, stroke });
    }

    fn circle(&mut self, name: &'static str, centre: Place, radius: f64, fill: Colour, edge: Option<Stroke>) {
        self.shapes.push(Shape::Circle { name, centre, radius, fill, edge });
    }

    /// One row above the plot, where no line can pass under it.
    fn legend(&mut self, series: &CurveSeries, with_rate: bool) {
        let entries = [
            (!series.training.is_empty(), "training loss, each step", PALE_LOSS.stroke(1.5), false),
            (!series.smoothed.is_empty(), "training loss, smoothed", LOSS.stroke(2.6), false),
            (!series.validation.is_empty(), "validation loss (best ringed)", VALIDATION.stroke(1.8), true),
            (with_rate, "learning rate (right axis)", dashed(RATE), false),
        ];
        let mut x = MARGIN;
        for (_, name, stroke, circle) in entries.into_iter().filter(|(present, ..)| *present) {
            self.line("legend", vec![(x, 79.0), (x + 26.0, 79.0)], stroke);
            if circle {
                self.circle("legend", (x + 13.0, 79.0), 3.6, stroke.colour, None);
            }
            self.text("legend", (x + 33.0, 83.5), name.to_owned(), TEXT_SIZE, INK, Anchor::Start);
            // Room for the wider letters of other fonts.
            x += 33.0 + 1.08 * self.font.width(name, TEXT_SIZE) + 22.0;
        }
    }

    fn axes(&mut self, plot: &Plot) {
        let (left, right) = ACROSS;
        let (bottom, top) = UPWARDS;
        for tick in plot.loss.ticks(6, Style::Decimal) {
            self.line("grid", vec![(left, tick.place), (right, tick.place)], GRID.stroke(1.0));
            self.tick("loss-tick", (left - 9.0, tick.place + 4.5), tick, Anchor::End);
        }
        let measured = plot.measured.0 as f64..=plot.measured.1 as f64;
        let steps = plot.steps.ticks(9, Style::Whole).into_iter();
        for tick in steps.filter(|tick| measured.contains(&tick.value)) {
            self.line("grid", vec![(tick.place, bottom), (tick.place, bottom + 5.0)], SOFT_INK.stroke(1.0));
            self.tick("step-tick", (tick.place, bottom + 20.0), tick, Anchor::Middle);
        }
        if let Some(rate) = &plot.rate {
            for tick in rate.ticks(5, Style::Scientific) {
                self.line("grid", vec![(right, tick.place), (right + 5.0, tick.place)], SOFT_INK.stroke(1.0));
                self.tick("rate-tick", (right + 9.0, tick.place + 4.5), tick, Anchor::Start);
            }
            self.line("frame", vec![(right, bottom), (right, top)], SOFT_INK.stroke(1.0));
            self.upward((f64::from(SIZE.0) - 10.0, (bottom + top) / 2.0), "learning rate");
        }
        self.line("frame", vec![(left, top), (left, bottom), (right, bottom)], SOFT_INK.stroke(1.0));
        self.upward((22.0, (bottom + top) / 2.0), "loss (nats per token)");
        let below = ((left + right) / 2.0, bottom + 44.0);
        self.text("axis-title", below, "optimiser step".into(), TEXT_SIZE + 1.0, INK, Anchor::Middle);
    }

    fn tick(&mut self, name: &'static str, place: Place, tick: Tick, anchor: Anchor) {
        self.text(name, place, tick.label, TEXT_SIZE, SOFT_INK, anchor);
    }

    fn upward(&mut self, place: Place, text: &str) {
        self.shapes.push(Shape::Text {
            name: "axis-title",
            place,
            text: text.to_owned(),
            size: TEXT_SIZE + 1.0,
            colour: INK,
            anchor: Anchor::Middle,
            upward: true,
        });
    }

    fn lines(&mut self, series: &CurveSeries, plot: &Plot) {
        if let Some(rate) = &plot.rate {
            self.curve("learning-rate", &series.learning_rate, plot, rate, dashed(RATE));
            // One rate makes no line.
            if let [(step, value)] = series.learning_rate[..] {
                let centre = (plot.steps.place(step as f64), rate.place(value));
                self.circle("learning-rate-point", centre, 3.2, RATE, None);
            }
        }
        self.curve("training", &series.training, plot, &plot.loss, PALE_LOSS.stroke(1.2));
        // A line that goes up and down in every column would become a band.
        let width = if series.smoothed.len() > MAX_BOLD { 1.6 } else { 2.6 };
        self.curve("smoothed", &series.smoothed, plot, &plot.loss, LOSS.stroke(width));
        if series.smoothed.len() <= MAX_DOTS {
            self.dots("training-point", &series.training, plot, 2.6, PALE_LOSS);
            self.dots("smoothed-point", &series.smoothed, plot, 3.2, LOSS);
        }
        self.curve("validation", &series.validation, plot, &plot.loss, VALIDATION.stroke(1.8));
        if series.validation.len() <= MAX_CIRCLES {
            self.dots("validation-point", &series.validation, plot, 3.6, VALIDATION);
        }
        let best = series.validation.iter().copied().reduce(|best, next| if next.1 < best.1 { next } else { best });
        let place = |point: Point| (plot.steps.place(point.0 as f64), plot.loss.place(point.1));
        if let Some(centre) = best.map(place).filter(|centre| centre.1 >= UPWARDS.1) {
            self.circle("best", centre, 7.5, PAPER.faint(0.0), Some(VALIDATION.stroke(1.6)));
        }
        if let Some(spike) = plot.spike {
            self.spike(spike, plot);
        }
    }

    fn curve(&mut self, name: &'static str, points: &[Point], plot: &Plot, axis: &Axis, stroke: Stroke) {
        for piece in plot.pieces(&thinned(points), axis).into_iter().filter(|piece| piece.len() > 1) {
            self.line(name, piece, stroke);
        }
    }

    fn dots(&mut self, name: &'static str, points: &[Point], plot: &Plot, radius: f64, colour: Colour) {
        for centre in plot.pieces(points, &plot.loss).into_iter().flatten() {
            // Where a line leaves the paper it was not measured.
            if centre.1 > UPWARDS.1 {
                self.circle(name, centre, radius, colour, None);
            }
        }
    }

    /// An arrow at the upper edge where the highest loss is, and how high it is.
    fn spike(&mut self, spike: Point, plot: &Plot) {
        let (x, top) = (plot.steps.place(spike.0 as f64), UPWARDS.1);
        let corners = vec![(x, top - 13.0), (x - 5.0, top - 4.0), (x + 5.0, top - 4.0)];
        self.shapes.push(Shape::Area { name: "spike", corners, fill: LOSS });
        let text = format!("off the scale: {} at step {}", short(spike.1), grouped(spike.0 as f64));
        let (place, anchor) = if x > (ACROSS.0 + ACROSS.1) / 2.0 {
            ((x - 10.0, top - 4.0), Anchor::End)
        } else {
            ((x + 10.0, top - 4.0), Anchor::Start)
        };
        self.text("spike", place, text, TEXT_SIZE, LOSS, anchor);
    }
}

fn dashed(colour: Colour) -> Stroke {
    Stroke { dashed: true, ..colour.stroke(1.3) }
}
