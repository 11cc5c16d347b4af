//! `lineage`: what payloads were made of, as a tree, as Graphviz, or as one object an edge.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;

use payload_client::{Client, ClientError, Direction, Parent};
use payload_types::PayloadId;
use payload_types::record::LineageEdge;
use serde::Serialize;

use crate::common::parse_id;
use crate::output::{Column, Output, Row, left};
use crate::view::Opaque;

/// A tree is indented by at most so many levels; deeper ones say how deep they are. A chain of 10,000 payloads is then
/// 10,000 short lines.
const INDENT_MAX: usize = 24;

/// Subcommands of `lineage`.
#[derive(clap::Subcommand)]
pub enum LineageCommand {
    /// Say what a payload was made of.
    Add(AddArgs),
    /// Show what a payload was made of, or what was made of it.
    Show(ShowArgs),
}

/// Arguments of `lineage add`.
#[derive(clap::Args)]
pub struct AddArgs {
    /// What was made.
    #[arg(value_name = "CHILD")]
    child: String,
    /// Of what; may be given several times.
    #[arg(long = "parent", required = true, value_name = "ID")]
    parents: Vec<String>,
    /// By what it was made.
    #[arg(long, default_value = "")]
    operation: String,
    /// As what the parent served.
    #[arg(long, default_value = "")]
    role: String,
}

/// Arguments of `lineage show`.
#[derive(clap::Args)]
pub struct ShowArgs {
    /// From which payload.
    #[arg(value_name = "ID")]
    id: String,
    /// Towards what it was made of; this is so without a flag.
    #[arg(long, conflicts_with = "down")]
    up: bool,
    /// Towards what was made of it.
    #[arg(long)]
    down: bool,
    /// At most so many steps; all of them without it.
    #[arg(long, value_name = "STEPS", default_value_t = 0, hide_default_value = true)]
    depth: u32,
    /// Print a graph for Graphviz.
    #[arg(long)]
    dot: bool,
}

/// An edge.
#[derive(Serialize)]
struct Edge {
    parent: String,
    child: String,
    operation: String,
    role: String,
    #[serde(flatten)]
    parameters: Opaque,
}

impl From<&LineageEdge> for Edge {
    fn from(edge: &LineageEdge) -> Self {
        Self {
            parent: edge.parent.to_string(),
            child: edge.child.to_string(),
            operation: edge.operation.clone(),
            role: edge.role.clone(),
            parameters: Opaque::parameters(&edge.parameters),
        }
    }
}

impl Row for Edge {
    const COLUMNS: &'static [Column] =
        &[left("PARENT", 36), left("CHILD", 36), left("OPERATION", 10), left("ROLE", 6)];
    fn cells(&self) -> Vec<String> {
        [&self.parent, &self.child, &self.operation, &self.role].map(Clone::clone).to_vec()
    }
}

/// Runs `lineage`.
pub async fn run(client: &Client, output: &mut Output, command: LineageCommand) -> anyhow::Result<()> {
    match command {
        LineageCommand::Add(args) => add(client, output, args).await,
        LineageCommand::Show(args) => show(client, output, args).await,
    }
}

async fn add(client: &Client, output: &mut Output, args: AddArgs) -> anyhow::Result<()> {
    let child = parse_id(&args.child)?;
    let mut parents = Vec::with_capacity(args.parents.len());
    for text in &args.parents {
        let (operation, role) = (args.operation.clone(), args.role.clone());
        parents.push(Parent { id: parse_id(text)?, operation, role, parameters: Vec::new() });
    }
    client.add_lineage(child, parents.clone()).await?;
    for Parent { id: parent, operation, role, parameters } in parents {
        output.row(&Edge::from(&LineageEdge { child, parent, operation, role, parameters }))?;
    }
    Ok(())
}

async fn show(client: &Client, output: &mut Output, args: ShowArgs) -> anyhow::Result<()> {
    let id = parse_id(&args.id)?;
    let direction = if args.down { Direction::Downstream } else { Direction::Upstream };
    let edges = client.lineage(id, direction, args.depth).await?;
    if output.is_json() && !args.dot {
        for edge in &edges {
            output.object(&Edge::from(edge))?;
        }
        return Ok(());
    }
    let text = if args.dot { dot(id, &edges) } else { tree(id, direction, &edges) };
    let written = output.stdout().write_all(text.as_bytes());
    Ok(written.map_err(|reason| ClientError::Io { what: "cannot write the output", reason })?)
}

/// The edges below `root`, each once, a line each. What is below a payload that comes again is shown where it came first,
/// so cycles end.
fn tree<'e>(root: PayloadId, direction: Direction, edges: &'e [LineageEdge]) -> String {
    let ends = |edge: &LineageEdge| match direction {
        Direction::Upstream => (edge.child, edge.parent),
        Direction::Downstream => (edge.parent, edge.child),
    };
    let mut below: HashMap<PayloadId, Vec<&'e LineageEdge>> = HashMap::new();
    for edge in edges {
        below.entry(ends(edge).0).or_default().push(edge);
    }
    let mut text = format!("{root}\n");
    let mut seen = HashSet::from([root]);
    // What is still to be shown, the next one last: an edge, its depth, and the lines that stand before it.
    let mut waiting = Vec::new();
    let branches = |edges: Option<Vec<&'e LineageEdge>>, depth: usize, indent: &str| {
        let edges = edges.unwrap_or_default().into_iter().rev().enumerate();
        edges.map(|(index, edge)| (edge, depth, indent.to_owned(), index == 0)).collect::<Vec<_>>()
    };
    waiting.extend(branches(below.remove(&root), 1, ""));
    while let Some((edge, depth, indent, is_last)) = waiting.pop() {
        let id = ends(edge).1;
        let is_new = seen.insert(id);
        let branch = if is_last { "└─ " } else { "├─ " };
        let depth_shown = if depth > INDENT_MAX { format!("[{depth}] ") } else { String::new() };
        let again = if is_new { "" } else { "  (see above)" };
        text += &format!("{indent}{branch}{depth_shown}{id}{}{again}\n", label(edge, "  "));
        if is_new {
            let further = if is_last { "   " } else { "│  " };
            let indent = if depth < INDENT_MAX { indent + further } else { indent };
            waiting.extend(branches(below.remove(&id), depth + 1, &indent));
        }
    }
    text
}

/// The edges as Graphviz draws them, from parents to children.
fn dot(root: PayloadId, edges: &[LineageEdge]) -> String {
    let mut text = format!("digraph lineage {{\n  node [shape=box];\n  \"{root}\" [style=bold];\n");
    for edge in edges {
        let label = label(edge, "");
        let label: String = label.chars().flat_map(quoted).collect();
        text += &format!("  \"{}\" -> \"{}\" [label=\"{label}\"];\n", edge.parent, edge.child);
    }
    text + "}\n"
}

/// A character inside of a quoted name of Graphviz.
fn quoted(character: char) -> Vec<char> {
    match character {
        '"' | '\\' => vec!['\\', character],
        _ if character.is_control() => vec![' '],
        _ => vec![character],
    }
}

/// `before`, then operation and role; nothing when there is neither.
fn label(edge: &LineageEdge, before: &str) -> String {
    let plain = |text: &str| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    match (edge.operation.is_empty(), edge.role.is_empty()) {
        (true, true) => String::new(),
        (false, true) => format!("{before}{}", plain(&edge.operation)),
        (true, false) => format!("{before}({})", plain(&edge.role)),
        (false, false) => format!("{before}{} ({})", plain(&edge.operation), plain(&edge.role)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> PayloadId {
        PayloadId::from_bytes([byte; 16])
    }

    fn edge(parent: u8, child: u8, operation: &str) -> LineageEdge {
        LineageEdge {
            child: id(child),
            parent: id(parent),
            operation: operation.to_owned(),
            role: String::new(),
            parameters: Vec::new(),
        }
    }

    #[test]
    fn given_a_cycle_and_a_shared_parent_when_drawn_then_each_edge_is_one_line() {
        let edges =
            [edge(2, 1, "cut"), edge(3, 1, "mix"), edge(4, 2, ""), edge(4, 3, ""), edge(1, 4, "back")];
        let drawn = tree(id(1), Direction::Upstream, &edges);
        let expected = format!(
            "{}\n├─ {}  cut\n│  └─ {}\n│     └─ {}  back  (see above)\n└─ {}  mix\n   └─ {}  (see above)\n",
            id(1),
            id(2),
            id(4),
            id(1),
            id(3),
            id(4)
        );
        assert_eq!(drawn, expected);
    }

    #[test]
    fn given_a_long_chain_when_drawn_then_lines_stay_short() {
        let number = |number: u16| {
            let mut bytes = [0; 16];
            bytes[..2].copy_from_slice(&number.to_be_bytes());
            PayloadId::from_bytes(bytes)
        };
        let step = |at| LineageEdge { child: number(at), parent: number(at + 1), ..edge(0, 0, "") };
        let edges: Vec<LineageEdge> = (0..10_000).map(step).collect();
        let drawn = tree(number(0), Direction::Upstream, &edges);
        assert_eq!(drawn.lines().count(), 10_001);
        assert!(drawn.lines().all(|line| line.chars().count() < 3 * INDENT_MAX + 60));
        assert!(drawn.lines().last().expect("lines").contains("[10000]"));
    }

    #[test]
    fn given_hostile_names_when_drawn_for_graphviz_then_they_stay_inside_their_quotes() {
        let text = dot(id(1), &[edge(2, 1, "a\"];\\x\n")]);
        assert!(text.contains(r#"[label="a\"];\\x "];"#), "{text}");
        assert_eq!(text.lines().count(), 5);
    }
}
