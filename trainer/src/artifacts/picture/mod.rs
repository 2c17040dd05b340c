//! A picture as a list of shapes, and the two files it becomes: a drawing (`svg`) and its pixels (`png`). Both show the
//! same shapes at the same places; letters in the pixels come from a font that is part of the program.

mod font;
mod png;
mod raster;
mod svg;

pub(super) use font::Font;

/// A place, in units from the upper left corner.
pub(super) type Place = (f64, f64);

/// Colour and opacity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Colour {
    /// Red, green, blue.
    pub(super) rgb: [u8; 3],
    /// 0 is invisible, 1 covers what is behind.
    pub(super) opacity: f64,
}

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stroke {
    pub(super) colour: Colour,
    pub(super) width: f64,
    pub(super) dashed: bool,
}

/// Which end of a text stands at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// One thing in a picture.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    /// A line through some points; `name` says what it shows, for whoever reads the drawing's source.
    Line { name: &'static str, points: Vec<Place>, stroke: Stroke },
    /// A filled shape with corners.
    Area { name: &'static str, corners: Vec<Place>, fill: Colour },
    /// A filled circle, with or without an edge.
    Circle { name: &'static str, centre: Place, radius: f64, fill: Colour, edge: Option<Stroke> },
    /// A line of text on its base line; `upward` turns it to be read from below.
    Text { name: &'static str, place: Place, text: String, size: f64, colour: Colour, anchor: Anchor, upward: bool },
}

/// Shapes on a white ground, later ones over earlier ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Picture {
    pub(super) width: u32,
    pub(super) height: u32,
    /// What it is, for those who cannot see it.
    pub(super) title: String,
    /// What it shows, for those who cannot see it.
    pub(super) description: String,
    pub(super) shapes: Vec<Shape>,
}

// === impl Colour ===

impl Colour {
    pub(super) const fn solid(red: u8, green: u8, blue: u8) -> Self {
        Self { rgb: [red, green, blue], opacity: 1.0 }
    }

    pub(super) const fn faint(self, opacity: f64) -> Self {
        Self { opacity, ..self }
    }

    pub(super) const fn stroke(self, width: f64) -> Stroke {
        Stroke { colour: self, width, dashed: false }
    }
}

// === impl Picture ===

impl Picture {
    /// The drawing.
    pub(super) fn svg(&self) -> String {
        svg::write(self)
    }

    /// The pixels, `density` of them for each unit in both directions.
    pub(super) fn png(&self, density: u32) -> crate::Result<Vec<u8>> {
        let pixels = raster::draw(self, density)?;
        png::write(self.width * density, self.height * density, &pixels)
    }
}
