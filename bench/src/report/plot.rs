//! Percentiles as curves: how long all but the slowest took, up to the slowest one in a hundred thousand.

use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use plotters::prelude::*;

use super::Times;

const SIZE: (u32, u32) = (1000, 600);
/// The axis ends at 99.999 %: "nines" is minus the decimal logarithm of what is left out.
const NINES_MAX: f64 = 5.0;
const STEPS_PER_NINE: u32 = 40;
/// Told apart in print and by most who confuse red and green (after Okabe and Ito).
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 0, 0),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// One target's times and its name.
pub(crate) struct Curve<'a> {
    pub(crate) name: &'a str,
    pub(crate) times: &'a Times,
}

/// Draws all curves that have times into one SVG file.
pub(crate) fn draw(curves: &[Curve<'_>], file: &Path) -> Result<()> {
    let curves: Vec<(&str, Vec<(f64, f64)>)> =
        curves.iter().filter(|c| c.times.len() > 0).map(|c| (c.name, points(c.times))).collect();
    ensure!(!curves.is_empty(), "nothing was measured that could be drawn");
    let values = || curves.iter().flat_map(|(_, points)| points).map(|&(_, value)| value);
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(0.0, f64::max);
    let nines = curves.iter().filter_map(|(_, points)| points.last()).map(|&(n, _)| n).fold(1.0, f64::max);
    let mut svg = String::new();
    // The library's errors hold the file's name at most, but are not `Sync`.
    render(&mut svg, &curves, nines, (low.max(0.001) * 0.9)..(high.max(0.002) * 1.1))
        .map_err(|error| anyhow!("{error}"))?;
    Ok(std::fs::write(file, svg)?)
}

/// Percentiles of one target, as (nines, µs), as far as there are enough times to tell.
fn points(times: &Times) -> Vec<(f64, f64)> {
    let known = (times.len() as f64).log10().min(NINES_MAX);
    let steps = (known * f64::from(STEPS_PER_NINE)) as u32;
    let nines = (0..=steps).map(|step| f64::from(step) / f64::from(STEPS_PER_NINE));
    nines.map(|nines| (nines, times.at(1.0 - 10f64.powf(-nines)))).collect()
}

fn render(
    svg: &mut String,
    curves: &[(&str, Vec<(f64, f64)>)],
    nines: f64,
    micros: std::ops::Range<f64>,
) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'static> as DrawingBackend>::ErrorType>> {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(20)
        .x_label_area_size(45)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..nines, micros.log_scale())?;
    chart
        .configure_mesh()
        .x_labels(6)
        .x_label_formatter(&|nines| percentile(*nines))
        .y_label_formatter(&|micros| microseconds(*micros))
        .x_desc("percentile")
        .y_desc("time")
        .draw()?;
    for ((name, points), color) in curves.iter().zip(COLORS.iter().cycle()) {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()
}

fn percentile(nines: f64) -> String {
    let percent = 100.0 * (1.0 - 10f64.powf(-nines));
    let decimals = (nines - 2.0).ceil().clamp(0.0, NINES_MAX) as usize;
    format!("{percent:.decimals$} %")
}

fn microseconds(micros: f64) -> String {
    match micros {
        ..1.0 => format!("{:.0} ns", micros * 1e3),
        1.0..1e3 => format!("{micros:.0} µs"),
        1e3..1e6 => format!("{:.0} ms", micros / 1e3),
        _ => format!("{:.0} s", micros / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_axis_names_percentiles() {
        let labels = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0].map(percentile);
        assert_eq!(labels, ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"]);
    }

    #[test]
    fn a_curve_ends_where_there_are_too_few_times_to_tell() {
        let mut times = Times::new();
        (1..=1000).for_each(|us| times.record(Duration::from_micros(us)));
        let points = points(&times);
        let last = points.last().unwrap();
        assert!((last.0 - 3.0).abs() < 0.05, "{last:?}");
        assert!((last.1 - 1000.0).abs() < 5.0, "{last:?}");
    }

    #[test]
    fn a_plot_names_its_targets_and_without_any_time_there_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("plot.svg");
        let (mut times, none) = (Times::new(), Times::new());
        times.record(Duration::from_micros(120));
        let curves = [Curve { name: "gateway", times: &times }, Curve { name: "nobody", times: &none }];
        draw(&curves, &file).unwrap();
        let svg = std::fs::read_to_string(&file).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("gateway") && !svg.contains("nobody"), "{svg}");
        assert!(draw(&curves[1..], &file).is_err());
    }
}
