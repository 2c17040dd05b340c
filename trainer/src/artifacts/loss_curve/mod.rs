//! `loss_curve.svg` and `loss_curve.png`: losses over optimiser steps, with the learning rate on an axis of its own. Both
//! files are the same picture.

mod axis;
mod layout;
mod series;
#[cfg(test)]
mod tests;

pub(in crate::artifacts) use series::short;
pub use series::{CurveSeries, Point};

use super::{history::History, picture::Picture};
use crate::Result;

/// The name of the drawing in a job's output folder.
pub const SVG_FILE: &str = "loss_curve.svg";
/// The name of its pixels.
pub const PNG_FILE: &str = "loss_curve.png";

/// Pixels for each unit of the drawing: sharp on the screens of today.
const DENSITY: u32 = 2;

/// The picture of a run.
#[derive(Debug)]
pub struct LossCurve(Picture);

// === impl LossCurve ===

impl LossCurve {
    /// Lays the picture out; `title` stands above it.
    pub fn new(history: &History, title: &str) -> Result<Self> {
        let words = series::in_words(&history.summary());
        layout::picture(&CurveSeries::of(history, title), &words).map(Self)
    }

    /// The drawing.
    pub fn svg(&self) -> String {
        self.0.svg()
    }

    /// The pixels.
    pub fn png(&self) -> Result<Vec<u8>> {
        self.0.png(DENSITY)
    }
}
