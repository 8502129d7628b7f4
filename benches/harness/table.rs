//! Prints one line a claim: `row | work | ours | floor | ratio | target | met`.

use std::collections::BTreeMap;

use super::{Claim, Unit, median};

/// The lines above all others.
pub(crate) fn head() {
    println!();
    line_of([
        "row", "work", "ours", "against", "", "ratio", "target", "goal", "met",
    ]);
    line_of(["--", "--", "--", "--", "--", "--", "--", "--", "--"]);
}

/// Prints what became of `claim`; false if its target is missed, or could not be judged.
pub(crate) fn line(claim: &Claim, figures: &BTreeMap<&'static str, Vec<f64>>) -> bool {
    let figure_of = |name| figures.get(name).map(|rounds| median(rounds));
    let ours = figure_of(claim.ours);
    let own_unit = match claim.unit {
        Unit::Ns => "ns",
        Unit::Us => "us",
        Unit::KiB => "KiB",
    };
    let (theirs, unit) = match claim.against {
        Some(name) => (figure_of(name), "x"),
        // The bound is a figure: the "ratio" is the figure itself.
        None => (Some(1.0), own_unit),
    };
    let ratio = ours.zip(theirs).map(|(ours, theirs)| ours / theirs);
    let holds = |bound: Option<f64>| bound.zip(ratio).map(|(bound, ratio)| ratio <= bound);
    let met = match (holds(claim.target), holds(claim.goal)) {
        (Some(false), _) => "NO",
        (_, Some(true)) => "goal",
        (Some(true), _) => "target",
        (None, Some(false)) => "not the goal yet",
        (None, None) => "-",
    };
    let shown = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), digits);
    let bound = |bound: Option<f64>| {
        bound.map_or_else(String::new, |bound| format!("<= {} {unit}", digits(bound)))
    };
    line_of([
        &claim.row.to_string(),
        claim.work,
        &format!("{} {}", shown(ours), own_unit),
        claim.against.unwrap_or("the bound itself"),
        &claim
            .against
            .map_or_else(String::new, |_| format!("{} {}", shown(theirs), own_unit)),
        &shown(ratio),
        &bound(claim.target),
        &bound(claim.goal),
        met,
    ]);
    met != "NO" && ratio.is_some()
}

fn line_of(cells: [&str; 9]) {
    let widths = [3, 42, 11, 38, 11, 7, 10, 10, 6];
    let padded = cells
        .iter()
        .zip(widths)
        .map(|(cell, width)| format!("{cell:<width$}"));
    println!("| {} |", padded.collect::<Vec<_>>().join(" | "));
}

/// Three digits that matter.
fn digits(figure: f64) -> String {
    match figure.abs() {
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        size if size >= 1.0 => format!("{figure:.2}"),
        _ => format!("{figure:.3}"),
    }
}
