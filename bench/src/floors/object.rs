//! What the `object_store` crate alone does with a store: uploads in parts by its own writer, and plain downloads into
//! memory. No hash, no journal, no sidecar.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, WriteMultipart};
use tokio::runtime::Runtime;

/// What the crate's writer cuts objects into: as large as ours, which is more than its own 5 MiB and faster.
const PART_BYTES: usize = 8 << 20;

/// Parts of one object under way.
const PARTS: usize = 8;

/// See the module.
pub struct RawObjects {
    runtime: Runtime,
    store: Arc<AmazonS3>,
    bytes: Bytes,
    in_flight: usize,
    keys: Vec<Path>,
}

impl RawObjects {
    /// Speaks to the bucket `bucket` of a server on loopback.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub fn open(
        endpoint: &str,
        bucket: &str,
        keys: (&str, &str),
        bytes: Vec<u8>,
        count: usize,
        in_flight: usize,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("a runtime")?;
        let store = AmazonS3Builder::new()
            .with_endpoint(endpoint)
            .with_allow_http(true)
            .with_region("us-east-1")
            .with_bucket_name(bucket)
            .with_access_key_id(keys.0)
            .with_secret_access_key(keys.1)
            .build()?;
        let keys = (0..count).map(|number| Path::from(format!("raw/{number}"))).collect();
        Ok(Self { runtime, store: Arc::new(store), bytes: bytes.into(), in_flight, keys })
    }

    /// Stores all objects. Answers bytes a second.
    ///
    /// # Errors
    /// What the store said.
    pub fn put(&self) -> anyhow::Result<f64> {
        let one = |key: Path| {
            let (store, bytes) = (Arc::clone(&self.store), self.bytes.clone());
            async move {
                let upload = store.put_multipart(&key).await?;
                let mut writer = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
                for part in (0..bytes.len()).step_by(PART_BYTES) {
                    writer.wait_for_capacity(PARTS).await?;
                    writer.put(bytes.slice(part..(part + PART_BYTES).min(bytes.len())));
                }
                writer.finish().await.map(drop)
            }
        };
        self.timed(one)
    }

    /// Fetches all objects. Answers bytes a second.
    ///
    /// # Errors
    /// What the store said.
    pub fn get(&self) -> anyhow::Result<f64> {
        let one = |key: Path| {
            let store = Arc::clone(&self.store);
            async move { store.get(&key).await?.bytes().await.map(drop) }
        };
        self.timed(one)
    }

    /// Deletes all objects.
    ///
    /// # Errors
    /// What the store said.
    pub fn delete(&self) -> anyhow::Result<()> {
        let one = |key: Path| {
            let store = Arc::clone(&self.store);
            async move { store.delete(&key).await }
        };
        self.timed(one).map(drop)
    }

    fn timed<F>(&self, one: impl Fn(Path) -> F) -> anyhow::Result<f64>
    where
        F: Future<Output = object_store::Result<()>> + Send + 'static,
    {
        let started = Instant::now();
        self.runtime.block_on(async {
            let all = stream::iter(self.keys.clone()).map(|key| {
                let task = tokio::spawn(one(key));
                async move { task.await.context("a task")?.context("the store") }
            });
            all.buffer_unordered(self.in_flight).try_collect::<Vec<()>>().await
        })?;
        Ok((self.keys.len() * self.bytes.len()) as f64 / started.elapsed().as_secs_f64())
    }
}
