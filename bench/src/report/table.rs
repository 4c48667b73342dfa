//! Tables in Markdown, aligned so that a terminal shows them as well.

use std::fmt;

/// A figure with `decimals`, or a dash where there is none.
pub(crate) fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.decimals$}"))
}

/// The first column is a name and stands left; the others are figures and stand right. A blank line follows.
pub(crate) fn write_table(
    f: &mut fmt::Formatter<'_>,
    header: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> fmt::Result {
    let header: Vec<String> = header.iter().map(|&name| name.to_owned()).collect();
    let rows: Vec<Vec<String>> = rows.into_iter().collect();
    let all = || std::iter::once(&header).chain(&rows);
    let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let write_row = |f: &mut fmt::Formatter<'_>, row: &[String]| {
        write!(f, "| {:<1$} |", row[0], widths[0])?;
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            write!(f, " {cell:>width$} |")?;
        }
        writeln!(f)
    };
    write_row(f, &header)?;
    write!(f, "|:{}-|", "-".repeat(widths[0]))?;
    for width in &widths[1..] {
        write!(f, "-{}:|", "-".repeat(*width))?;
    }
    writeln!(f)?;
    for row in &rows {
        write_row(f, row)?;
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Table;
    impl fmt::Display for Table {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write_table(f, &["target", "n"], [vec!["a".to_owned(), "1000".to_owned()]])
        }
    }

    #[test]
    fn a_table_is_markdown_and_aligned() {
        let expected = "| target |    n |\n|:-------|-----:|\n| a      | 1000 |\n\n";
        assert_eq!(Table.to_string(), expected);
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        assert_eq!((number(None, 1), number(Some(1.25), 1)), ("–".to_owned(), "1.2".to_owned()));
    }
}
