//! Lineage: walks, and edges that outlive payloads.

use payload_types::record::{LineageEdge, RecordAnswer, RecordChange, RecordOutcome, RecordQuery};

use super::{Desk, add_edges, at, edge, id};
use crate::backends::Backend;
use crate::rows::{key, put, row};

fn walk(number: u64, upstream: bool, depth_max: u32) -> RecordQuery {
    RecordQuery::Lineage { key: key(number), upstream, depth_max, at: at(9) }
}

fn met<B: Backend>(desk: &mut Desk<B>, number: u64, upstream: bool, depth_max: u32) -> Vec<LineageEdge> {
    match desk.ask(walk(number, upstream, depth_max)) {
        RecordAnswer::Lineage(edges) => edges,
        other => panic!("no lineage: {other:?}"),
    }
}

/// Each payload of `0 .. length` was made of the one before.
fn chain<B: Backend>(desk: &mut Desk<B>, length: u64) {
    let batch: Vec<_> =
        (1..length).map(|child| add_edges(child, vec![edge(child, child - 1, "op")]).into()).collect();
    for some in batch.chunks(1000) {
        assert_eq!(desk.store.apply(some), Ok(vec![RecordOutcome::Done; some.len()]));
    }
}

pub fn given_an_unknown_child_or_parent_when_added_then_not_found_and_nothing_is_stored<B: Backend>() {
    let mut desk = Desk::<B>::new(2);
    assert_eq!(desk.change(add_edges(7, vec![])), RecordOutcome::NotFound(id(7)));
    assert_eq!(desk.change(add_edges(7, vec![edge(7, 0, "op")])), RecordOutcome::NotFound(id(7)));
    let some_unknown = vec![edge(0, 1, "op"), edge(0, 9, "op"), edge(0, 8, "op")];
    assert_eq!(desk.change(add_edges(0, some_unknown)), RecordOutcome::NotFound(id(9)), "the first that is");
    assert_eq!(desk.change(add_edges(0, vec![])), RecordOutcome::Done);
    for upstream in [true, false] {
        assert_eq!(met(&mut desk, 0, upstream, 0), []);
        assert_eq!(desk.ask(walk(9, upstream, 0)), RecordAnswer::NotFound(id(9)));
    }
    // ALLOCATED payloads count as known.
    desk.allocated(3);
    assert_eq!(desk.change(add_edges(3, vec![edge(3, 0, "op")])), RecordOutcome::Done);
}

pub fn given_an_edge_when_added_again_then_its_parameters_are_replaced<B: Backend>() {
    let mut desk = Desk::<B>::new(2);
    let mut again = edge(0, 1, "op");
    again.parameters = vec![7; 1000];
    let (mut role, operation) = (edge(0, 1, "op"), edge(0, 1, "op\0"));
    role.role = String::new();
    desk.change(add_edges(0, vec![edge(0, 1, "op"), operation.clone(), role.clone()]));
    desk.change(add_edges(0, vec![again.clone()]));
    let mut desk = desk.again();
    assert_eq!(met(&mut desk, 0, true, 0), [role.clone(), again.clone(), operation.clone()]);
    assert_eq!(met(&mut desk, 1, false, 0), [role, again, operation]);
}

pub fn given_a_graph_with_diamonds_and_cycles_when_walked_then_breadth_first_each_edge_once<B: Backend>() {
    let mut desk = Desk::<B>::new(7);
    //   0 <- 1, 2 <- 3 (a diamond)   3 <- 4 <- 0 (a cycle)   4 <- 4 (itself)   5 <- 6 (apart)
    let all = [(1, 0), (2, 0), (3, 1), (3, 2), (4, 3), (0, 4), (4, 4), (6, 5)];
    for (child, parent) in all {
        assert_eq!(desk.change(add_edges(child, vec![edge(child, parent, "op")])), RecordOutcome::Done);
    }
    let edges = |pairs: &[(u64, u64)]| -> Vec<LineageEdge> {
        pairs.iter().map(|(child, parent)| edge(*child, *parent, "op")).collect()
    };
    let up = edges(&[(3, 1), (3, 2), (1, 0), (2, 0), (0, 4), (4, 3), (4, 4)]);
    assert_eq!(met(&mut desk, 3, true, 0), up);
    assert_eq!(met(&mut desk, 3, true, 1), up[..2]);
    assert_eq!(met(&mut desk, 3, true, 2), up[..4]);
    assert_eq!(met(&mut desk, 3, true, 3), up[..5]);
    assert_eq!(met(&mut desk, 3, true, u32::MAX), up);
    let down = edges(&[(1, 0), (2, 0), (3, 1), (3, 2), (4, 3), (0, 4), (4, 4)]);
    assert_eq!(met(&mut desk, 0, false, 0), down);
    assert_eq!(met(&mut desk, 6, true, 0), edges(&[(6, 5)]));
    assert_eq!(met(&mut desk, 6, false, 0), []);
}

pub fn given_payloads_in_between_that_were_deleted_when_walked_then_the_chain_is_whole<B: Backend>() {
    let mut desk = Desk::<B>::new(10);
    chain(&mut desk, 10);
    desk.remove(1..9);
    assert_eq!(desk.swept(at(9)), 0, "both ends live");
    let mut desk = desk.again();
    let whole: Vec<LineageEdge> = (1..10).rev().map(|child| edge(child, child - 1, "op")).collect();
    assert_eq!(met(&mut desk, 9, true, 0), whole);
    desk.remove([0]);
    assert_eq!(desk.swept(at(9)), 0, "one end lives");
    assert_eq!(met(&mut desk, 9, true, 0), whole);
    assert_eq!(desk.ask(walk(0, false, 0)), RecordAnswer::NotFound(id(0)));
}

pub fn given_lineage_of_which_nothing_lives_when_swept_then_it_is_gone_and_the_rest_stays<B: Backend>() {
    let mut desk = Desk::<B>::new(3000);
    chain(&mut desk, 2000);
    // A pair apart, one with itself, and a living pair.
    for (child, parent) in [(2001, 2000), (2002, 2002), (2004, 2003)] {
        desk.change(add_edges(child, vec![edge(child, parent, "op")]));
    }
    desk.remove(0..2003);
    assert_eq!(desk.store.sweep_is_due(at(9)), Ok(true));
    // More than one sweep does, also over a restart in between.
    match desk.change(RecordChange::Sweep { at: at(9) }) {
        RecordOutcome::Swept { more: true, .. } => {}
        other => panic!("a sweep of 2,000 payloads met {other:?}"),
    }
    let mut desk = desk.again();
    desk.swept(at(9));
    let batch: Vec<_> = (0..2003).map(|number| put(row(number))).collect();
    desk.store.apply(&batch).expect("stored anew");
    for number in [0, 1, 1000, 1999, 2000, 2001, 2002] {
        for upstream in [true, false] {
            assert_eq!(met(&mut desk, number, upstream, 0), [], "{number}");
        }
    }
    assert_eq!(met(&mut desk, 2004, true, 0), [edge(2004, 2003, "op")]);
}

pub fn given_a_dead_part_far_from_what_lives_when_swept_then_it_stays<B: Backend>() {
    let mut desk = Desk::<B>::new(1500);
    chain(&mut desk, 1500);
    desk.remove(0..1499);
    assert_eq!(desk.swept(at(9)), 0);
    assert_eq!(met(&mut desk, 1499, true, 0).len(), 1499);
    desk.remove([1499]);
    assert_eq!(desk.swept(at(9)), 1499);
}

pub fn given_more_edges_than_a_message_holds_when_walked_then_too_large<B: Backend>() {
    let mut desk = Desk::<B>::new(8);
    for parent in 1..6 {
        let mut large = edge(0, parent, "op");
        large.parameters = vec![0; 1 << 20];
        desk.change(add_edges(0, vec![large]));
    }
    assert_eq!(desk.ask(walk(0, true, 0)), RecordAnswer::TooLarge);
    assert_eq!(met(&mut desk, 5, false, 0).len(), 1);
}

suite_of_records! {[
    given_an_unknown_child_or_parent_when_added_then_not_found_and_nothing_is_stored,
    given_an_edge_when_added_again_then_its_parameters_are_replaced,
    given_a_graph_with_diamonds_and_cycles_when_walked_then_breadth_first_each_edge_once,
    given_payloads_in_between_that_were_deleted_when_walked_then_the_chain_is_whole,
    given_lineage_of_which_nothing_lives_when_swept_then_it_is_gone_and_the_rest_stays,
    given_a_dead_part_far_from_what_lives_when_swept_then_it_stays,
    given_more_edges_than_a_message_holds_when_walked_then_too_large,
]}
