//! The letters of the pictures: widths for laying out, outlines for drawing.

use ttf_parser::{Face, GlyphId, OutlineBuilder};

use crate::{Error, Result};

/// See `roboto/README.md`.
const BYTES: &[u8] = include_bytes!("roboto/roboto-latin.ttf");
/// What stands for the rest of a text that is too long.
const ELLIPSIS: char = '…';

/// The one font of the pictures.
pub(in crate::artifacts) struct Font {
    face: Face<'static>,
}

// === impl Font ===

impl Font {
    pub(in crate::artifacts) fn new() -> Result<Self> {
        let face = Face::parse(BYTES, 0)
            .map_err(|error| Error::Invalid(format!("the font of the pictures cannot be read: {error}")))?;
        Ok(Self { face })
    }

    /// Width of a text.
    pub(in crate::artifacts) fn width(&self, text: &str, size: f64) -> f64 {
        text.chars().map(|letter| self.advance(self.glyph(letter), size)).sum()
    }

    /// The text, or as much of its beginning as fits, with an ellipsis.
    pub(in crate::artifacts) fn fit(&self, text: &str, size: f64, room: f64) -> String {
        let mut fitting = String::new();
        let mut width = self.width("…", size);
        if self.width(text, size) <= room {
            return text.to_owned();
        }
        for letter in text.chars() {
            width += self.advance(self.glyph(letter), size);
            if width > room {
                break;
            }
            fitting.push(letter);
        }
        fitting.push(ELLIPSIS);
        fitting
    }

    /// A letter's outline; an empty box for letters that the font lacks.
    pub(super) fn glyph(&self, letter: char) -> GlyphId {
        self.face.glyph_index(letter).unwrap_or_default()
    }

    /// How far the next letter is.
    pub(super) fn advance(&self, glyph: GlyphId, size: f64) -> f64 {
        f64::from(self.face.glyph_hor_advance(glyph).unwrap_or_default()) * self.scale(size)
    }

    /// Draws a letter in the font's own units, upwards from its base line.
    pub(super) fn outline(&self, glyph: GlyphId, builder: &mut dyn OutlineBuilder) {
        // A letter without an outline is a space.
        let _ = self.face.outline_glyph(glyph, builder);
    }

    /// Units of a picture in a unit of the font.
    pub(super) fn scale(&self, size: f64) -> f64 {
        size / f64::from(self.face.units_per_em())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_letter_that_pictures_use_is_there() {
        let font = Font::new().unwrap();
        for letter in (' '..='~').chain("äéßñ×·—–…−".chars()) {
            assert_ne!(font.glyph(letter), GlyphId(0), "{letter:?}");
        }
        assert_eq!(font.glyph('漢'), GlyphId(0), "what is missing is a box");
    }

    #[test]
    fn a_text_is_cut_where_the_room_ends() {
        let font = Font::new().unwrap();
        let text = "a rather long name of a job";
        assert_eq!(font.fit(text, 14.0, 1000.0), text);
        let cut = font.fit(text, 14.0, 60.0);
        assert!(cut.ends_with('…') && text.starts_with(cut.trim_end_matches('…')), "{cut}");
        assert!(font.width(&cut, 14.0) <= 60.0 && cut.chars().count() > 5, "{cut}");
    }
}
