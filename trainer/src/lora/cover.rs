//! The shortest names that mean exactly a given set of modules and no other.

use std::collections::{BTreeSet, HashMap, HashSet};

/// Every dotted end of a path, shortest first, up to the whole path: the names PEFT takes for it.
pub(super) fn ends(path: &str) -> impl Iterator<Item = &str> {
    path.rmatch_indices('.').map(|(dot, _)| &path[dot + 1..]).chain(std::iter::once(path))
}

/// Entries for `target_modules` (or `target_parameters`): ends of paths that match every chosen path and no other path
/// of `universe`, which must hold the chosen ones too.
pub(super) fn suffixes<'a>(chosen: &[&'a str], universe: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut unchosen = HashMap::<&str, isize>::new();
    for path in universe {
        ends(path).for_each(|end| *unchosen.entry(end).or_default() += 1);
    }
    for path in chosen {
        ends(path).for_each(|end| *unchosen.entry(end).or_default() -= 1);
    }
    let shortest = |path: &&'a str| ends(path).find(|end| unchosen.get(end) == Some(&0)).unwrap_or(path).to_owned();
    chosen.iter().map(shortest).collect::<BTreeSet<_>>().into_iter().collect()
}

/// A path with its numbers as `\d+`, as a regular expression that also Python understands.
fn generalised(path: &str) -> String {
    let part = |part: &str| match part.bytes().all(|byte| byte.is_ascii_digit()) {
        true => r"\d+".to_owned(),
        false => regex::escape(part),
    };
    path.split('.').map(part).collect::<Vec<_>>().join(r"\.")
}

/// Keys for `rank_pattern` and `alpha_pattern`: for every path whose value is not `base`, a regular expression that
/// matches its end, and the end of no path with another value.
pub(super) fn patterns<Value: Copy + PartialEq>(valued: &[(&str, Value)], base: Value) -> Vec<(String, Value)> {
    let general: Vec<String> = valued.iter().map(|(path, _)| generalised(path)).collect();
    // The one value of all paths with this end, or none where they differ.
    let mut uniform = HashMap::<&str, Option<Value>>::new();
    for (path, (_, value)) in general.iter().zip(valued) {
        for end in pattern_ends(path) {
            let shared = uniform.entry(end).or_insert(Some(*value));
            if *shared != Some(*value) {
                *shared = None;
            }
        }
    }
    let mut found = Vec::new();
    let mut known = HashSet::new();
    for (path, (exact, value)) in general.iter().zip(valued) {
        if *value == base {
            continue;
        }
        let key = match pattern_ends(path).find(|end| uniform[end].is_some()) {
            Some(end) => end.to_owned(),
            None => regex::escape(exact),
        };
        if known.insert(key.clone()) {
            found.push((key, *value));
        }
    }
    found
}

/// The ends of a generalised path, shortest first, without those that begin with a number: they read badly.
fn pattern_ends(path: &str) -> impl Iterator<Item = &str> {
    let inner = path.rmatch_indices(r"\.").map(|(dot, separator)| &path[dot + separator.len()..]);
    inner.filter(|end| !end.starts_with(r"\d+")).chain(std::iter::once(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: [&str; 6] = ["l.0.a.up", "l.0.e.0.up", "l.0.e.1.up", "l.1.a.up", "l.1.e.0.up", "head"];

    #[test]
    fn the_shortest_exact_end_is_taken() {
        let cover = |chosen: &[&'static str]| suffixes(chosen, PATHS.into_iter());
        assert_eq!(cover(&["head"]), ["head"]);
        assert_eq!(cover(&PATHS), ["head", "up"]);
        assert_eq!(cover(&["l.0.a.up", "l.1.a.up"]), ["a.up"]);
        assert_eq!(cover(&["l.0.a.up"]), ["0.a.up"]);
        assert_eq!(cover(&["l.0.e.1.up"]), ["1.up"]);
        assert_eq!(cover(&["l.0.e.0.up", "l.1.e.0.up"]), ["0.up"]);
    }

    #[test]
    fn patterns_generalise_over_numbers_where_values_allow() {
        let values = |experts: [u8; 3]| {
            let [first, second, third] = experts;
            [("l.0.a.up", 8), ("l.0.e.0.up", first), ("l.0.e.1.up", second), ("l.1.e.0.up", third)]
        };
        assert_eq!(patterns(&values([2, 2, 2]), 8), [(r"e\.\d+\.up".to_owned(), 2)]);
        assert_eq!(patterns(&values([8, 8, 8]), 8), []);
        let mixed = patterns(&values([2, 2, 8]), 8);
        assert_eq!(mixed, [(r"l\.0\.e\.0\.up".to_owned(), 2), (r"l\.0\.e\.1\.up".to_owned(), 2)]);
    }
}
