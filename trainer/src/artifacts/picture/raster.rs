//! A picture as pixels.

use tiny_skia::{
    Color, FillRule, LineCap, LineJoin, Paint, Path, PathBuilder, Pixmap, Stroke as Pen, StrokeDash, Transform,
};
use ttf_parser::OutlineBuilder;

use super::{Anchor, Colour, Font, Picture, Place, Shape, Stroke, svg::DASHES};
use crate::{Error, Result};

/// Red, green and blue of every pixel, row by row.
pub(super) fn draw(picture: &Picture, density: u32) -> Result<Vec<u8>> {
    let (width, height) = (picture.width * density, picture.height * density);
    let mut pixels = Pixmap::new(width, height)
        .ok_or_else(|| Error::Invalid(format!("a picture of {width} x {height} pixels cannot be drawn")))?;
    pixels.fill(Color::WHITE);
    let mut sheet = Sheet { pixels, font: Font::new()?, density: density as f32 };
    picture.shapes.iter().for_each(|shape| sheet.shape(shape));
    // The ground is opaque, so every pixel is.
    Ok(sheet.pixels.data().chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect())
}

/// What is drawn on, and with what.
struct Sheet {
    pixels: Pixmap,
    font: Font,
    density: f32,
}

// === impl Sheet ===

impl Sheet {
    fn shape(&mut self, shape: &Shape) {
        match shape {
            Shape::Line { points, stroke, .. } => {
                if let Some(path) = path(points, false) {
                    self.stroke(&path, stroke);
                }
            }
            Shape::Area { corners, fill, .. } => {
                if let Some(path) = path(corners, true) {
                    self.fill(&path, fill, self.all());
                }
            }
            Shape::Circle { centre, radius, fill, edge, .. } => {
                if let Some(path) = PathBuilder::from_circle(centre.0 as f32, centre.1 as f32, *radius as f32) {
                    self.fill(&path, fill, self.all());
                    if let Some(edge) = edge {
                        self.stroke(&path, edge);
                    }
                }
            }
            Shape::Text { place, text, size, colour, anchor, upward, .. } => {
                self.text(*place, text, *size, colour, *anchor, *upward);
            }
        }
    }

    fn all(&self) -> Transform {
        Transform::from_scale(self.density, self.density)
    }

    fn stroke(&mut self, path: &Path, stroke: &Stroke) {
        let pen = Pen {
            width: stroke.width as f32,
            line_cap: LineCap::Round,
            line_join: LineJoin::Round,
            dash: if stroke.dashed { StrokeDash::new(DASHES.to_vec(), 0.0) } else { None },
            ..Pen::default()
        };
        self.pixels.stroke_path(path, &paint(&stroke.colour), &pen, self.all(), None);
    }

    fn fill(&mut self, path: &Path, colour: &Colour, transform: Transform) {
        self.pixels.fill_path(path, &paint(colour), FillRule::Winding, transform, None);
    }

    fn text(&mut self, place: Place, text: &str, size: f64, colour: &Colour, anchor: Anchor, upward: bool) {
        let share = match anchor {
            Anchor::Start => 0.0,
            Anchor::Middle => 0.5,
            Anchor::End => 1.0,
        };
        let mut along = -share * self.font.width(text, size);
        let scale = self.font.scale(size) as f32;
        let turn = if upward { -90.0 } else { 0.0 };
        for letter in text.chars() {
            let glyph = self.font.glyph(letter);
            let mut outline = Outline(PathBuilder::new());
            self.font.outline(glyph, &mut outline);
            if let Some(path) = outline.0.finish() {
                let transform = self
                    .all()
                    .pre_translate(place.0 as f32, place.1 as f32)
                    .pre_concat(Transform::from_rotate(turn))
                    .pre_translate(along as f32, 0.0)
                    // A font counts upwards.
                    .pre_scale(scale, -scale);
                self.fill(&path, colour, transform);
            }
            along += self.font.advance(glyph, size);
        }
    }
}

fn paint(colour: &Colour) -> Paint<'static> {
    let [red, green, blue] = colour.rgb;
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color_rgba8(red, green, blue, (255.0 * colour.opacity).round() as u8);
    paint
}

fn path(points: &[Place], closed: bool) -> Option<Path> {
    let mut builder = PathBuilder::new();
    let mut points = points.iter();
    let first = points.next()?;
    builder.move_to(first.0 as f32, first.1 as f32);
    points.for_each(|point| builder.line_to(point.0 as f32, point.1 as f32));
    if closed {
        builder.close();
    }
    builder.finish()
}

/// Takes a letter's outline.
struct Outline(PathBuilder);

// === impl Outline ===

impl OutlineBuilder for Outline {
    fn move_to(&mut self, x: f32, y: f32) {
        self.0.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        self.0.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        self.0.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        self.0.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RED: Colour = Colour::solid(255, 0, 0);

    /// How many pixels of a small picture are not white, left and right of its middle.
    fn inked(shapes: Vec<Shape>) -> [usize; 2] {
        let picture = Picture { width: 40, height: 20, shapes, ..Picture::default() };
        let pixels = draw(&picture, 2).unwrap();
        assert_eq!(pixels.len(), 80 * 40 * 3);
        let side = |left: bool| {
            let marked = |(index, pixel): &(usize, &[u8])| (index % 80 < 40) == left && *pixel != [255, 255, 255];
            pixels.chunks_exact(3).enumerate().filter(marked).count()
        };
        [side(true), side(false)]
    }

    fn text(anchor: Anchor, upward: bool) -> Vec<Shape> {
        let text = "iii".to_owned();
        vec![Shape::Text { name: "", place: (20.0, 15.0), text, size: 12.0, colour: RED, anchor, upward }]
    }

    #[test]
    fn shapes_leave_ink_where_they_are() {
        let line = |points| Shape::Line { name: "", points, stroke: RED.stroke(2.0) };
        let [left, right] = inked(vec![line(vec![(2.0, 10.0), (18.0, 10.0)])]);
        assert!(left > 100 && right == 0, "{left} {right}");
        assert_eq!(inked(vec![line(vec![]), line(vec![(4.0, 4.0)])]), [0, 0], "one point makes no line");
        let circle = Shape::Circle { name: "", centre: (30.0, 10.0), radius: 3.0, fill: RED, edge: None };
        let [left, right] = inked(vec![circle]);
        // pi * 3^2 * 2^2 pixels, and those its edge touches.
        assert!(left == 0 && (105..150).contains(&right), "{left} {right}");
    }

    #[test]
    fn text_stands_where_its_anchor_says() {
        let [left, right] = inked(text(Anchor::Start, false));
        assert!(left == 0 && right > 20, "{left} {right}");
        let [left, right] = inked(text(Anchor::End, false));
        assert!(left > 20 && right == 0, "{left} {right}");
        let [left, right] = inked(text(Anchor::Middle, false));
        assert!(left > 10 && right > 10, "{left} {right}");
        let [left, right] = inked(text(Anchor::Start, true));
        assert!(left > 20 && right == 0, "read from below, a text stands left of its base line: {left} {right}");
    }
}
