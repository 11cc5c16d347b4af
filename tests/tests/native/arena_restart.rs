//! What lies in slabs when the server ends: saved by a stop in good order, lost by a kill, and kept by whoever leased it
//! over gRPC before. A real server, native and gRPC clients.

use payload_client::{AcquireOptions, Client, ClientError, Location};
use payload_tests::server::{Place, Server};
use payload_tests::v1::content;
use payload_types::{ByteCount, ErrorKind, PayloadId, PayloadState, Tier};

/// Around pages, and larger than a slab of this server (1 MiB).
const SIZES: [usize; 5] = [1, 4096, 70_001, 300_000, 3_000_001];

async fn native(server: &Server) -> Client {
    let client = Client::connect(&server.address).await.expect("connected");
    assert!(client.session().is_some(), "a server on this host gives a session");
    client
}

/// Committed in slabs, with what is in them.
async fn put_all(client: &Client) -> Vec<(PayloadId, Vec<u8>)> {
    let mut put = Vec::new();
    for (seed, size) in (1..).zip(SIZES) {
        let bytes = content(seed, size);
        let size = ByteCount(size as u64);
        let mut payload = client.allocate(size).await.expect("allocated");
        assert!(matches!(payload.descriptor().location, Some(Location::Block { .. })), "{payload:?}");
        payload.copy_from_slice(&bytes);
        put.push((payload.commit(None).await.expect("committed").id, bytes));
    }
    put
}

async fn read(client: &Client, id: PayloadId) -> Result<Vec<u8>, ClientError> {
    let lease = client.acquire(id, &AcquireOptions::default()).await?;
    let bytes = lease.to_vec();
    lease.release().await?;
    Ok(bytes)
}

#[tokio::test]
async fn given_payloads_in_slabs_when_the_server_stops_in_good_order_then_the_next_one_has_all_of_them() {
    let place = Place::new();
    let server = place.start();
    let put = put_all(&native(&server).await).await;
    server.stop();

    let server = place.start();
    let client = native(&server).await;
    for (id, bytes) in &put {
        let found = client.resolve(*id).await.expect("known");
        assert_eq!((found.tier, found.state), (Tier::Disk, PayloadState::Durable));
        assert!(read(&client, *id).await.expect("leased") == *bytes, "{} bytes", bytes.len());
    }
}

#[tokio::test]
async fn given_payloads_in_slabs_when_the_server_is_killed_then_they_are_lost_but_for_those_leased_over_grpc()
{
    let place = Place::new();
    let server = place.start();
    let client = native(&server).await;
    let put = put_all(&client).await;
    let (kept, lost) = put.split_at(2);
    // While a native reader has the blocks.
    let id = kept[1].0;
    let reader = client.acquire(id, &AcquireOptions::default()).await.expect("leased");
    let remote = Client::connect_grpc(&server.address).await.expect("connected");
    for (id, bytes) in kept {
        assert!(read(&remote, *id).await.expect("leased") == *bytes, "{} bytes", bytes.len());
    }
    assert_eq!(&*reader, &kept[1].1[..]);
    let shown = client.resolve(id).await.expect("known");
    assert!(matches!(shown.location, Some(Location::Segment { .. })), "{shown:?}");
    server.kill();
    assert_eq!(&*reader, &kept[1].1[..], "what is mapped stays");

    let server = place.start();
    let client = native(&server).await;
    for (id, bytes) in kept {
        assert!(read(&client, *id).await.expect("leased") == *bytes, "{} bytes", bytes.len());
    }
    for (id, _) in lost {
        let refused = read(&client, *id).await.expect_err("its memory ended with the server");
        let ClientError::Server { kind, message } = &refused else { panic!("{refused:?}") };
        assert_eq!(*kind, ErrorKind::NotFound);
        assert!(message.contains("did not survive"), "{message}");
    }
}

#[tokio::test]
async fn given_far_more_than_memory_when_it_goes_through_slabs_then_every_payload_is_read_as_it_was_written()
{
    let place = Place::new()
        .with("STORAGE__RAM__CAPACITY_BYTES", "32MiB")
        .with("STORAGE__DISK__CAPACITY_BYTES", "512MiB");
    let server = place.start();
    let (writer, reader) = (native(&server).await, native(&server).await);
    let mut put = Vec::new();
    for seed in 0..240 {
        let bytes = content(seed, 400_000);
        let mut payload = writer.allocate(ByteCount(400_000)).await.expect("there is room, or it is made");
        payload.copy_from_slice(&bytes);
        put.push((payload.commit(None).await.expect("committed").id, seed));
        if seed % 7 == 3 {
            let (id, seed) = put[put.len() / 2];
            assert!(read(&reader, id).await.expect("leased") == content(seed, 400_000), "payload {seed}");
        }
    }
    for (id, seed) in put {
        assert!(read(&reader, id).await.expect("leased") == content(seed, 400_000), "payload {seed}");
    }
}
