//! The compiled contract is the table `proto/v1.tsv`, row by row, both ways.
//!
//!     FILE_DESCRIPTOR_SET --prost-reflect--> rows --compare--> differences <-- rows -- proto/v1.tsv
//!
//! The descriptors are written out in the table's own notation, so a difference reads like the row it concerns.
//! Ours may be: files that the table does not name, and fields numbered from 1000. Everything else must be there.

use std::collections::BTreeSet;
use std::path::Path;

use payload_wire::FILE_DESCRIPTOR_SET;
use protox::prost::Message;
use protox::prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, FileDescriptor, Kind,
    MessageDescriptor, MethodDescriptor, Syntax,
};

/// Fields from here on are ours (DESIGN §9).
const OWN_FIELD_FIRST: u32 = 1000;

type Rows = BTreeSet<String>;

/// The table as it lies in the repository.
fn table() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../v1.tsv");
    let text = std::fs::read_to_string(&path).expect("proto/v1.tsv is part of the repository");
    text.lines().map(str::to_owned).collect()
}

/// The descriptors as rows, additions of ours left out.
fn compiled(descriptors: &[u8], table: &Rows) -> Rows {
    let pool = DescriptorPool::decode(descriptors).expect("a FileDescriptorSet");
    let named: Vec<&str> =
        table.iter().filter_map(|row| row.strip_prefix("file\t")?.split('\t').next()).collect();
    let mut rows = Rows::new();
    for file in pool.files().filter(|file| named.contains(&file.name())) {
        file_rows(&file, &mut rows);
    }
    rows
}

fn file_rows(file: &FileDescriptor, rows: &mut Rows) {
    assert_eq!(file.syntax(), Syntax::Proto3, "{}: the contract is proto3", file.name());
    rows.insert(format!("file\t{}\tpackage {}", file.name(), file.package_name()));
    for message in file.messages() {
        message_rows(&message, rows);
    }
    for enumeration in file.enums() {
        enum_rows(&enumeration, rows);
    }
    for service in file.services() {
        for method in service.methods() {
            rows.insert(rpc_row(&method));
        }
    }
}

fn message_rows(message: &MessageDescriptor, rows: &mut Rows) {
    let name = message.full_name();
    if message.is_map_entry() {
        let key = type_name(&message.map_entry_key_field());
        let value = type_name(&message.map_entry_value_field());
        rows.insert(format!("map\t{name}\tkey {key}\tvalue {value}"));
        return;
    }
    rows.insert(format!("message\t{name}"));
    for field in message.fields().filter(|field| field.number() < OWN_FIELD_FIRST) {
        let repeated = if field.cardinality() == Cardinality::Repeated { "repeated " } else { "" };
        let oneof = match field.containing_oneof() {
            Some(oneof) => format!(" oneof {}", oneof.name()),
            None => String::new(),
        };
        rows.insert(format!(
            "field\t{name}\t{}\t{}\t{repeated}{}{oneof}",
            field.number(),
            field.name(),
            type_name(&field)
        ));
    }
    for child in message.child_messages() {
        message_rows(&child, rows);
    }
    for enumeration in message.child_enums() {
        enum_rows(&enumeration, rows);
    }
}

fn enum_rows(enumeration: &EnumDescriptor, rows: &mut Rows) {
    for value in enumeration.values() {
        rows.insert(format!("enum\t{}\t{}\t{}", enumeration.full_name(), value.number(), value.name()));
    }
}

fn type_name(field: &FieldDescriptor) -> String {
    match field.kind() {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(enumeration) => enumeration.full_name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

fn rpc_row(method: &MethodDescriptor) -> String {
    let stream = |streams| if streams { "stream " } else { "" };
    format!(
        "rpc\t{}\t{}\t{}{} -> {}{}\t{}",
        method.parent_service().full_name(),
        method.name(),
        stream(method.is_client_streaming()),
        method.input().full_name(),
        stream(method.is_server_streaming()),
        method.output().full_name(),
        http_route(method)
    )
}

/// `VERB path [body FIELD]`, from the `google.api.http` option; further bindings are shown, so that they differ.
fn http_route(method: &MethodDescriptor) -> String {
    let pool = method.parent_pool();
    let http = pool.get_extension_by_name("google.api.http").expect("google/api is vendored");
    let options = method.options();
    if !options.has_extension(&http) {
        return "no route".to_owned();
    }
    let route = options.get_extension(&http);
    let route = route.as_message().expect("an HttpRule");
    let text = |rule: &DynamicMessage, field: &str| {
        rule.get_field_by_name(field).and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    };
    let mut row = String::new();
    for verb in ["get", "put", "post", "delete", "patch"] {
        if route.has_field_by_name(verb) {
            row.push_str(&format!("{} {}", verb.to_uppercase(), text(route, verb)));
        }
    }
    if route.has_field_by_name("body") {
        row.push_str(&format!(" body {}", text(route, "body")));
    }
    for further in ["response_body", "additional_bindings", "selector", "custom"] {
        if route.has_field_by_name(further) {
            row.push_str(&format!(" and {further}"));
        }
    }
    row
}

/// What the table has and the descriptors lack, and the other way round.
fn differences(table: &Rows, compiled: &Rows) -> Vec<String> {
    let lacking = table.difference(compiled).map(|row| format!("only in the table: {row}"));
    let surplus = compiled.difference(table).map(|row| format!("only in the .proto files: {row}"));
    lacking.chain(surplus).collect()
}

fn table_rows() -> Rows {
    table().into_iter().collect()
}

#[test]
fn given_the_compiled_protos_when_compared_with_the_table_then_they_are_equal() {
    let rows = table_rows();
    assert_eq!(table().len(), 348, "the contract's table is whole");
    assert_eq!(rows.len(), 348, "no row stands there twice");
    let differences = differences(&rows, &compiled(FILE_DESCRIPTOR_SET, &rows));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Alters the table's row `original` into `altered` and asserts that both ends of the difference are found.
#[track_caller]
fn canary(original: &str, altered: &str) {
    let mut rows = table_rows();
    assert!(rows.remove(original), "the canary's row is in the table: {original}");
    rows.insert(altered.to_owned());
    let found = differences(&rows, &compiled(FILE_DESCRIPTOR_SET, &rows));
    assert!(found.contains(&format!("only in the table: {altered}")), "{altered}: {found:?}");
}

#[test]
fn given_one_altered_row_of_each_kind_when_compared_then_it_is_found() {
    let summary = "field\tpayload.manager.runtime.v1.PayloadSummary";
    canary(&format!("{summary}\t7\tactive_leases\tuint32"), &format!("{summary}\t8\tactive_leases\tuint32"));
    canary(&format!("{summary}\t7\tactive_leases\tuint32"), &format!("{summary}\t7\tactive_leases\tuint64"));
    canary(&format!("{summary}\t7\tactive_leases\tuint32"), &format!("{summary}\t7\tleases\tuint32"));
    let place =
        "field\tpayload.manager.core.v1.PayloadDescriptor\t5\tram\tpayload.manager.core.v1.RamLocation";
    canary(&format!("{place} oneof location"), place);
    canary(
        "enum\tpayload.manager.core.v1.Tier\t5\tTIER_VOID",
        "enum\tpayload.manager.core.v1.Tier\t6\tTIER_VOID",
    );
    canary(
        "message\tpayload.manager.runtime.v1.PinRequest",
        "message\tpayload.manager.runtime.v1.HoldRequest",
    );
    let map = "map\tpayload.manager.runtime.v1.AppendItem.TagsEntry\tkey string\tvalue";
    canary(&format!("{map} string"), &format!("{map} bytes"));
    canary(
        "file\tpayload/manager/core/v1/id.proto\tpackage payload.manager.core.v1",
        "file\tpayload/manager/core/v1/id.proto\tpackage payload.manager.core.v2",
    );
}

#[test]
fn given_an_altered_rpc_when_compared_then_type_streaming_verb_path_and_body_are_found() {
    let service = "rpc\tpayload.manager.services.v1.PayloadCatalogService\tPin\t";
    let request = "payload.manager.runtime.v1.PinRequest -> ";
    let original =
        format!("{service}{request}google.protobuf.Empty\tPOST /v1/payloads/{{id.value}}/pin body *");
    for (from, to) in [
        ("google.protobuf.Empty", "payload.manager.runtime.v1.PinRequest"),
        (" -> google", " -> stream google"),
        ("POST", "PUT"),
        ("/pin", "/hold"),
        (" body *", ""),
    ] {
        canary(&original, &original.replace(from, to));
    }
}

#[test]
fn given_altered_descriptors_when_compared_then_what_is_surplus_is_found_and_our_own_fields_are_not() {
    let mut set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("a FileDescriptorSet");
    let message = set
        .file
        .iter_mut()
        .flat_map(|file| &mut file.message_type)
        .find(|message| message.name() == "PinRequest")
        .expect("in the contract");
    let added = |name: &str, number| prost_types::FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        json_name: None,
        ..message.field[1].clone()
    };
    let (ours, theirs) = (added("ours", 1000), added("theirs", 999));
    message.field.extend([ours, theirs]);
    let rows = table_rows();
    let found = differences(&rows, &compiled(&set.encode_to_vec(), &rows));
    let surplus =
        "only in the .proto files: field\tpayload.manager.runtime.v1.PinRequest\t999\ttheirs\tuint64";
    assert!(found.iter().any(|row| row == surplus), "{found:?}");
    assert!(!found.iter().any(|row| row.contains("\tours\t")), "{found:?}");
    // prost drops options that it does not know: the routes are gone, and every RPC differs.
    assert_eq!(found.iter().filter(|row| row.ends_with("no route")).count(), 26);
}

#[test]
fn given_our_own_fields_when_read_then_they_are_the_ones_agreed_on() {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("a FileDescriptorSet");
    let mut own: Vec<String> = Vec::new();
    for message in pool.all_messages().filter(|message| message.full_name().starts_with("payload.")) {
        for field in message.fields().filter(|field| field.number() >= OWN_FIELD_FIRST) {
            own.push(format!("{}.{} = {}", message.name(), field.name(), field.number()));
        }
    }
    own.sort();
    let agreed = [
        "AcquireReadLeaseRequest.accepts_packed = 1001",
        "AcquireReadLeaseRequest.expected_version = 1000",
        "AcquireReadLeaseRequest.object_url_ms = 1010",
        "AcquireReadLeaseResponse.object_url = 1010",
        "AllocatePayloadRequest.upload_url_ms = 1000",
        "AllocatePayloadResponse.upload_url = 1000",
        "CommitPayloadRequest.checksum_xxh3_64 = 1000",
        "CreateStreamRequest.retain_payloads = 1000",
        "DeleteRequest.expected_version = 1000",
        "GetCommittedResponse.committed = 1000",
        "GpuLocation.allocation_bytes = 1003",
        "GpuLocation.arena_id = 1001",
        "GpuLocation.device_uuid = 1004",
        "GpuLocation.generation = 1000",
        "GpuLocation.offset_bytes = 1002",
        "ImportPayloadRequest.checksum_xxh3_64 = 1000",
        "ImportPayloadResponse.payload_descriptor = 1000",
        "LineageEdge.child = 1000",
        "PayloadDescriptor.checksum_xxh3_64 = 1000",
        "PayloadDescriptor.node_address = 1003",
        "PayloadDescriptor.node_id = 1002",
        "PayloadDescriptor.size_bytes = 1001",
        "PayloadSummary.node_id = 1000",
        "PromoteRequest.expected_version = 1000",
        "SpillRequest.expected_version = 1000",
        "StatsResponse.arenas = 1004",
        "StatsResponse.disk = 1002",
        "StatsResponse.disk_segments = 1003",
        "StatsResponse.node = 1001",
        "StatsResponse.object_store = 1010",
        "StatsResponse.tiers = 1000",
    ];
    assert_eq!(own, agreed, "a number once used is never used for anything else");
}
