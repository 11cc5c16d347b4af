//! The threads that answer questions about records: one bounded FIFO, a [`Reader`] a thread.
//!
//! ```text
//! submit --try_send--> [FIFO] --one question--> catalog-read thread: Reader::read --> reply
//! ```
//!
//! What was acknowledged by the writer before a question was submitted is seen by its answer: stores promise that of
//! their readers. A question that waits is not forgotten; one that finds the queue full is handed back at once.

use std::thread::{self, JoinHandle};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use payload_types::record::{RecordAnswer, RecordQuery};
use payload_types::{ErrorKind, PayloadError};

use crate::error::StoreError;
use crate::store::Reader;

/// Takes the answer, on a reader's thread; must not block. Dropped unused when the readers stop.
pub type QueryReply = Box<dyn FnOnce(Result<RecordAnswer, PayloadError>) + Send>;

/// What travels to the threads.
enum Message {
    Query(RecordQuery, QueryReply),
    Stop,
}

/// The threads, and the way to their queue.
pub struct Readers {
    handle: ReadersHandle,
    threads: Vec<JoinHandle<()>>,
}

/// The way to the queue.
#[derive(Clone)]
pub struct ReadersHandle {
    queue: Sender<Message>,
}

impl ReadersHandle {
    /// Queues a question. Never blocks.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when the queue is full, UNAVAILABLE when the threads have stopped. The reply is dropped.
    pub fn submit(&self, query: RecordQuery, reply: QueryReply) -> Result<(), PayloadError> {
        self.queue.try_send(Message::Query(query, reply)).map_err(|error| match error {
            TrySendError::Full(_) => PayloadError::exhausted(
                "too many questions about metadata, lineage and streams wait for the catalog; ask again in a moment",
            ),
            TrySendError::Disconnected(_) => stopping(),
        })
    }
}

impl Readers {
    /// Starts a thread for each reader. `queue_len` questions may wait for them.
    ///
    /// # Panics
    /// When the system refuses a thread, as [`std::thread::spawn`] does.
    pub fn start(readers: Vec<Box<dyn Reader>>, queue_len: usize) -> Self {
        let (queue, questions) = bounded(queue_len);
        let start = |reader| {
            let questions = questions.clone();
            thread::Builder::new()
                .name("catalog-read".to_owned())
                .spawn(move || answer(reader, &questions))
                .expect("the system has room for a few more threads at start")
        };
        let threads = readers.into_iter().map(start).collect();
        Self { handle: ReadersHandle { queue }, threads }
    }

    /// A way to the queue that can outlive this value.
    pub fn handle(&self) -> ReadersHandle {
        self.handle.clone()
    }

    /// Answers what is queued by now and ends the threads. Questions that race this call may be dropped.
    pub fn shutdown(self) {
        for _ in &self.threads {
            // Waits for room if it must. An error means that the threads are gone.
            let _ = self.handle.queue.send(Message::Stop);
        }
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread that reads the catalog had ended by a panic");
            }
        }
    }
}

/// Answers questions until it is told to stop.
fn answer(mut reader: Box<dyn Reader>, questions: &Receiver<Message>) {
    while let Ok(Message::Query(query, reply)) = questions.recv() {
        reply(reader.read(&query).map_err(refused));
    }
}

fn refused(error: StoreError) -> PayloadError {
    tracing::error!(%error, "the catalog could not be read");
    let kind = if error.is_temporary() { ErrorKind::Unavailable } else { ErrorKind::Internal };
    PayloadError::new(kind, format!("the catalog could not be read: {error}; then ask again"))
}

fn stopping() -> PayloadError {
    PayloadError::new(ErrorKind::Unavailable, "the server is stopping; ask again once it is back")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use payload_types::record::StreamName;

    use super::*;

    /// Tells that it was asked, then waits to be let go, then says that it cannot.
    struct Slow(mpsc::Sender<()>, mpsc::Receiver<()>);

    impl Reader for Slow {
        fn read(&mut self, _query: &RecordQuery) -> Result<RecordAnswer, StoreError> {
            let Self(asked, go) = self;
            asked.send(()).expect("the test listens");
            go.recv().expect("the test lets go");
            Err(StoreError::Unavailable("the disk is away".to_owned()))
        }
    }

    #[test]
    fn given_a_full_queue_when_asked_then_refused_and_the_rest_answered_before_the_end() {
        let ((asked, was_asked), (go, may_go)) = (mpsc::channel(), mpsc::channel());
        let readers = Readers::start(vec![Box::new(Slow(asked, may_go))], 1);
        let handle = readers.handle();
        let query = || RecordQuery::Stream(StreamName { namespace: String::new(), name: "a".to_owned() });
        let (answers, answered) = mpsc::channel();
        let reply = || -> QueryReply {
            let answers = answers.clone();
            Box::new(move |answer| answers.send(answer).expect("the test listens"))
        };
        handle.submit(query(), reply()).expect("the first is being answered");
        was_asked.recv().expect("asked");
        handle.submit(query(), reply()).expect("the second waits");
        let refused = handle.submit(query(), reply()).expect_err("there is room for one");
        assert_eq!(refused.kind, ErrorKind::ResourceExhausted);
        go.send(()).and_then(|()| go.send(())).expect("it waits");
        readers.shutdown();
        let kinds: Vec<ErrorKind> =
            answered.try_iter().map(|answer| answer.expect_err("unavailable").kind).collect();
        assert_eq!(kinds, [ErrorKind::Unavailable, ErrorKind::Unavailable]);
        let stopped = handle.submit(query(), reply()).expect_err("stopped");
        assert_eq!(stopped.kind, ErrorKind::Unavailable);
    }
}
