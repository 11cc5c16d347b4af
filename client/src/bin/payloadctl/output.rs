//! What `payloadctl` prints: results on stdout, as tables for people or as JSON objects for programs, and failures on
//! stderr, one sentence each. Remembers whether anything failed.
//!
//! Rows are gathered until [`Output::flush`] or [`ROWS_PENDING_MAX`], so that a listing of any length streams; columns
//! have a least width, so that the parts line up.

use std::fmt::Display;
use std::io::{self, BufWriter, Stdout, Write};
use std::process::ExitCode;

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width};
use payload_client::ClientError;
use serde::Serialize;

/// As a shell reports a program that SIGPIPE ended: 128 + 13.
pub const EXIT_BROKEN_PIPE: u8 = 141;

/// Rows held back before they are printed: a page of the longest listing.
const ROWS_PENDING_MAX: usize = 500;

/// Columns are this far apart.
const GAP: u16 = 2;

/// A column of a table.
pub struct Column {
    /// Its heading.
    pub name: &'static str,
    /// Its least width: what its cells need as a rule.
    pub width: u16,
    /// Numbers stand on the right.
    pub right: bool,
}

/// A text column.
pub const fn left(name: &'static str, width: u16) -> Column {
    Column { name, width, right: false }
}

/// A number column.
pub const fn right(name: &'static str, width: u16) -> Column {
    Column { name, width, right: true }
}

/// What is shown as a line of a table, or as a JSON object.
pub trait Row: Serialize {
    /// The table's columns.
    const COLUMNS: &'static [Column];
    /// Lines are wrapped at this width; `None`: never, one row is one line.
    const LINE_WIDTH: Option<u16> = None;
    /// One cell a column.
    fn cells(&self) -> Vec<String>;
}

/// What is shown as a list of names and values, or as a JSON object.
pub trait Block: Serialize {
    /// Names and values, in order.
    fn fields(&self) -> Vec<(&'static str, String)>;
}

/// Stdout and stderr of one run.
pub struct Output {
    json: bool,
    has_failed: bool,
    has_header: bool,
    has_block: bool,
    columns: &'static [Column],
    line_width: Option<u16>,
    pending: Vec<Vec<String>>,
    stdout: BufWriter<Stdout>,
}

impl Output {
    /// For one run.
    pub fn new(json: bool) -> Self {
        Self {
            json,
            has_failed: false,
            has_header: false,
            has_block: false,
            columns: &[],
            line_width: None,
            pending: Vec::new(),
            stdout: BufWriter::new(io::stdout()),
        }
    }

    /// True when programs read.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// For what is neither row nor block.
    pub fn stdout(&mut self) -> &mut impl Write {
        &mut self.stdout
    }

    /// 0 when nothing failed.
    pub fn exit_code(&self) -> ExitCode {
        if self.has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    /// Shows a row. All rows of one run are of one type.
    pub fn row<R: Row>(&mut self, row: &R) -> Result<(), ClientError> {
        if self.json {
            return self.object(row);
        }
        (self.columns, self.line_width) = (R::COLUMNS, R::LINE_WIDTH);
        self.pending.push(row.cells());
        if self.pending.len() >= ROWS_PENDING_MAX { self.print_pending() } else { Ok(()) }
    }

    /// Shows a block.
    pub fn block<B: Block>(&mut self, block: &B) -> Result<(), ClientError> {
        if self.json {
            return self.object(block);
        }
        let fields = block.fields();
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + usize::from(GAP);
        let mut text = String::new();
        if std::mem::replace(&mut self.has_block, true) {
            text.push('\n');
        }
        for (name, value) in fields {
            text.push_str(format!("{name:width$}{value}").trim_end());
            text.push('\n');
        }
        self.write(text.as_bytes())
    }

    /// Shows that something was done to `id`: `deleted ID`, or `{"FIELD":"ID","result":"deleted"}`.
    pub fn done(&mut self, field: &str, id: &impl Display, result: &str) -> Result<(), ClientError> {
        if self.json {
            return self.object(&serde_json::json!({ field: id.to_string(), "result": result }));
        }
        self.write(format!("{result} {id}\n").as_bytes())
    }

    /// Prints one JSON object on a line of its own.
    pub fn object(&mut self, object: &impl Serialize) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(object).map_err(|error| cannot_write(error.into()))?;
        line.push(b'\n');
        self.write(&line)
    }

    /// Reports what failed, and goes on. What was printed before appears first.
    pub fn fail(&mut self, item: &str, error: &ClientError) -> Result<(), ClientError> {
        self.flush()?;
        self.complain(&format!("{item}: {error}"));
        Ok(())
    }

    /// One sentence on stderr, on one line; the run has failed.
    pub fn complain(&mut self, sentence: &str) {
        self.has_failed = true;
        // When stderr is closed there is nobody left to tell; the exit code still does.
        let _nobody_reads = writeln!(io::stderr(), "payloadctl: {}", one_line(sentence));
    }

    /// Prints what was held back.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.print_pending()?;
        self.stdout.flush().map_err(cannot_write)
    }

    fn print_pending(&mut self) -> Result<(), ClientError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.pending);
        let with_header = !std::mem::replace(&mut self.has_header, true);
        let text = table(self.columns, self.line_width, with_header, rows);
        self.write(text.as_bytes())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.stdout.write_all(bytes).map_err(cannot_write)
    }
}

/// Lays rows out, without borders.
fn table(columns: &[Column], line_width: Option<u16>, with_header: bool, rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    if let Some(width) = line_width {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    if with_header {
        table.set_header(columns.iter().map(|column| column.name));
    }
    table.add_rows(rows);
    for (index, shape) in columns.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, GAP));
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(shape.width + GAP)));
            column.set_cell_alignment(if shape.right { CellAlignment::Right } else { CellAlignment::Left });
        }
    }
    table.lines().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

/// Line breaks of a message would look like more than one failure.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn cannot_write(reason: io::Error) -> ClientError {
    ClientError::Io { what: "cannot write the output", reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[left("ID", 6), right("SIZE", 8), left("PATH", 0)];

    fn row(id: &str, size: &str, path: &str) -> Vec<String> {
        [id, size, path].map(str::to_owned).to_vec()
    }

    #[test]
    fn given_parts_of_a_table_when_printed_one_after_the_other_then_they_line_up() {
        let first = table(COLUMNS, None, true, vec![row("a", "1 B", "x")]);
        let next = table(COLUMNS, None, false, vec![row("abcdef", "1023 KiB", "a b")]);
        assert_eq!(first, "ID          SIZE  PATH\na            1 B  x\n");
        assert_eq!(next, "abcdef  1023 KiB  a b\n");
    }

    #[test]
    fn given_an_error_of_several_lines_when_reported_then_it_is_one() {
        assert_eq!(one_line("a\n  b\tc"), "a b c");
    }
}
