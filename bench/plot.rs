//! The plot: one line for each row, one mark for each system, on a logarithmic scale.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::Measured;
use crate::support::System;

const WIDTH: u32 = 1000;
const LINE: u32 = 22;
const TOP: u32 = 60;
const BOTTOM: u32 = 30;
/// Where the scale begins and ends.
const LEFT: i32 = 360;
const RIGHT: i32 = 960;
const LEAST: f64 = 0.02;
const MOST: f64 = 200.0;
const TICKS: [f64; 9] = [0.02, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 20.0, 100.0];

const MARKS: [(System, &str, RGBColor); 4] = [
    (System::Plain, "plain directory", RGBColor(150, 150, 150)),
    (
        System::FuseOverlayfs1,
        "fuse-overlayfs 1",
        RGBColor(230, 150, 40),
    ),
    (
        System::FuseOverlayfs2,
        "fuse-overlayfs 2.0",
        RGBColor(200, 60, 60),
    ),
    (System::Ours, "cvmfs-union", RGBColor(30, 100, 200)),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws the rows that have a figure to reach.
pub fn draw(rows: &[Measured], path: &Path) -> Result<(), Box<dyn Error>> {
    let rows: Vec<_> = rows.iter().filter(|row| row.most.is_some()).collect();
    let height = TOP + LINE * u32::try_from(rows.len())? + BOTTOM;
    let area = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    legend(&area)?;
    let bottom = i32::try_from(height - BOTTOM)?;
    for tick in TICKS {
        let style = if tick == 1.0 {
            BLACK.stroke_width(2)
        } else {
            RGBColor(225, 225, 225).stroke_width(1)
        };
        let x = place(tick);
        area.draw(&PathElement::new(
            [(x, i32::try_from(TOP)? - 8), (x, bottom)],
            style,
        ))?;
        text(&area, &tick.to_string(), (x, bottom + 14), HPos::Center)?;
    }
    for (row, y) in rows
        .iter()
        .zip((i32::try_from(TOP + LINE / 2)?..).step_by(LINE as usize))
    {
        text(&area, &row.name, (LEFT - 15, y), HPos::Right)?;
        if let Some(most) = row.most {
            let x = place(most);
            let style = RGBColor(30, 100, 200).stroke_width(2);
            area.draw(&PathElement::new([(x, y - 8), (x, y + 8)], style))?;
        }
        for (system, _, colour) in MARKS {
            if let Some(found) = row.wall(system) {
                let spread = [(place(found.least), y), (place(found.most), y)];
                area.draw(&PathElement::new(spread, colour.stroke_width(1)))?;
                area.draw(&Circle::new((place(found.median), y), 5, colour.filled()))?;
            }
        }
    }
    area.present()?;
    Ok(())
}

fn legend(area: &Area<'_>) -> Result<(), Box<dyn Error>> {
    text(
        area,
        "time, kernel overlayfs = 1; less is better; | is the figure to reach",
        (LEFT, 14),
        HPos::Left,
    )?;
    for ((_, name, colour), x) in MARKS.into_iter().zip((LEFT..).step_by(160)) {
        area.draw(&Circle::new((x + 5, 34), 5, colour.filled()))?;
        text(area, name, (x + 15, 34), HPos::Left)?;
    }
    Ok(())
}

fn text(area: &Area<'_>, text: &str, at: (i32, i32), side: HPos) -> Result<(), Box<dyn Error>> {
    let style = ("sans-serif", 15)
        .into_text_style(area)
        .pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(text.to_owned(), at, style))?;
    Ok(())
}

/// What is off the scale stands at its end.
fn place(value: f64) -> i32 {
    let share = (value.clamp(LEAST, MOST) / LEAST).ln() / (MOST / LEAST).ln();
    LEFT + (share * f64::from(RIGHT - LEFT)) as i32
}
