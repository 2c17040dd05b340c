//! A picture as SVG: text stays text, so it can be searched, copied and read aloud.

use std::fmt::Write;

use super::{Anchor, Colour, Picture, Place, Shape, Stroke};

/// The font of the pixels where the reader has it, else what looks like it.
const FONTS: &str = "Roboto, Helvetica, Arial, sans-serif";
/// Lengths of a dash and of the gap behind it.
pub(super) const DASHES: [f32; 2] = [6.0, 4.0];

/// Writes the drawing.
pub(super) fn write(picture: &Picture) -> String {
    let (width, height) = (picture.width, picture.height);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\" font-family=\"{FONTS}\">\n<title>{}</title>\n<desc>{}</desc>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n",
        escaped(&picture.title),
        escaped(&picture.description)
    );
    for shape in &picture.shapes {
        out.push_str(&element(shape));
        out.push('\n');
    }
    out.push_str("</svg>\n");
    out
}

fn element(shape: &Shape) -> String {
    match shape {
        Shape::Line { name, points, stroke } => format!(
            "<polyline class=\"{name}\" fill=\"none\"{} stroke-linejoin=\"round\" stroke-linecap=\"round\" points=\"{}\"/>",
            edge(stroke),
            places(points)
        ),
        Shape::Area { name, corners, fill } => {
            format!("<polygon class=\"{name}\"{} points=\"{}\"/>", filled(fill), places(corners))
        }
        Shape::Circle { name, centre, radius, fill, edge: line } => format!(
            "<circle class=\"{name}\" cx=\"{}\" cy=\"{}\" r=\"{}\"{}{}/>",
            number(centre.0),
            number(centre.1),
            number(*radius),
            filled(fill),
            line.as_ref().map(edge).unwrap_or_default()
        ),
        Shape::Text { name, place, text, size, colour, anchor, upward } => {
            let anchor = match anchor {
                Anchor::Start => "start",
                Anchor::Middle => "middle",
                Anchor::End => "end",
            };
            let (x, y) = (number(place.0), number(place.1));
            let turn = if *upward { format!(" transform=\"rotate(-90 {x} {y})\"") } else { String::new() };
            format!(
                "<text class=\"{name}\" x=\"{x}\" y=\"{y}\" font-size=\"{}\" text-anchor=\"{anchor}\"{}{turn}>{}</text>",
                number(*size),
                filled(colour),
                escaped(text)
            )
        }
    }
}

fn edge(stroke: &Stroke) -> String {
    let dashes =
        if stroke.dashed { format!(" stroke-dasharray=\"{} {}\"", DASHES[0], DASHES[1]) } else { String::new() };
    format!(
        " stroke=\"{}\"{} stroke-width=\"{}\"{dashes}",
        hexadecimal(&stroke.colour),
        opacity("stroke", &stroke.colour),
        number(stroke.width)
    )
}

fn filled(colour: &Colour) -> String {
    format!(" fill=\"{}\"{}", hexadecimal(colour), opacity("fill", colour))
}

fn hexadecimal(colour: &Colour) -> String {
    let [red, green, blue] = colour.rgb;
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn opacity(of: &str, colour: &Colour) -> String {
    if colour.opacity == 1.0 { String::new() } else { format!(" {of}-opacity=\"{}\"", colour.opacity) }
}

fn places(points: &[Place]) -> String {
    let mut text = String::new();
    for (x, y) in points {
        let gap = if text.is_empty() { "" } else { " " };
        // Writing to a text cannot fail.
        let _ = write!(text, "{gap}{},{}", number(*x), number(*y));
    }
    text
}

/// A coordinate with two digits behind the point at most: a two-hundredth of a unit is less than anybody sees.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text of foreign origin as XML has it; letters that XML does not know are left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => out.push(' '),
            letter => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 12.0, 12.5, 12.345, 100.0, -0.25].map(number);
        assert_eq!(texts, ["0", "12", "12.5", "12.35", "100", "-0.25"].map(str::to_owned));
    }

    #[test]
    fn foreign_text_stays_text() {
        let picture = Picture {
            width: 10,
            height: 10,
            title: "</title><script>alert(1)</script>\u{0}".into(),
            description: "\"&\"".into(),
            shapes: Vec::new(),
        };
        let svg = write(&picture);
        assert!(!svg.contains("<script") && svg.contains("&lt;script&gt;") && !svg.contains('\u{0}'), "{svg}");
        assert!(svg.contains("<desc>&quot;&amp;&quot;</desc>"), "{svg}");
    }
}
