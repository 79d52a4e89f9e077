//! Connections: how many there may be, and how long one may do nothing.
//!
//! A client that sends no request, or does not read what it asked for, holds a connection, and of a scrape a snapshot. So each
//! has its time, and there are fewer of them than the process may have files: those of the store among them.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::middleware::map_response;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tower_http::catch_panic::CatchPanicLayer;

/// A request's head takes no longer to arrive, the pause before it included.
const HEAD_MAX: Duration = Duration::from_secs(30);
/// What is sent is read, if only by a part, within this time.
const WRITE_MAX: Duration = Duration::from_secs(30);
/// What is being answered sends nothing more for so long at most: longer than any query runs.
const READ_MAX: Duration = Duration::from_secs(3600);
/// More connections wait until one ends.
const CONNECTIONS_MAX: usize = 512;
/// So often the log says that connections wait.
const LOG_AGAIN: Duration = Duration::from_secs(60);
/// After an error that is the machine's, such as too many open files, the next attempt comes so much later.
const PAUSE: Duration = Duration::from_millis(200);

/// Serves until `stop` is done, and then as long as what is being answered takes.
///
/// # Errors
/// None today: what goes wrong with one connection ends that one.
pub async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) -> Result<(), Infallible> {
    let connections = Arc::new(Semaphore::new(connections_max()));
    let graceful = GracefulShutdown::new();
    // A request that panics costs itself.
    let router = router.layer(CatchPanicLayer::new()).layer(map_response(in_turns));
    let mut logged: Option<Instant> = None;
    let mut stop = std::pin::pin!(stop);
    loop {
        if connections.available_permits() == 0 && logged.is_none_or(|at| at.elapsed() > LOG_AGAIN) {
            logged = Some(Instant::now());
            tracing::warn!(connections = connections_max(), "as many HTTP connections as there may be: more wait");
        }
        let accept = async {
            // The semaphore is never closed.
            let permit = Arc::clone(&connections).acquire_owned().await.ok();
            (listener.accept().await, permit)
        };
        let (stream, permit) = tokio::select! {
            (accepted, permit) = accept => match accepted {
                Ok((stream, _)) => (stream, permit),
                Err(error) => {
                    if !is_of_the_client(&error) {
                        tracing::warn!(%error, "no HTTP connection can be accepted");
                        tokio::time::sleep(PAUSE).await;
                    }
                    continue;
                }
            },
            () = &mut stop => break,
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_MAX)
            .serve_connection(TokioIo::new(Box::pin(with_timeouts(stream))), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A connection that ends badly is the client's affair.
            let _ = connection.await;
            drop(permit);
        });
    }
    graceful.shutdown().await;
    Ok(())
}

/// What is made or compressed while it is sent has its next part ready at once: without a pause a long answer would have its thread
/// for itself, and whoever waits there.
#[allow(clippy::unused_async, reason = "it is a middleware")]
async fn in_turns(response: Response) -> Response {
    response.map(|body| Body::new(InTurns { body, is_next: true }))
}

struct InTurns {
    body: Body,
    /// Whether others had their turn since the last part.
    is_next: bool,
}

impl HttpBody for InTurns {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if !std::mem::replace(&mut self.is_next, false) {
            self.is_next = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let frame = Pin::new(&mut self.body).poll_frame(context);
        self.is_next = frame.is_pending();
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn with_timeouts(stream: TcpStream) -> TimeoutStream<TcpStream> {
    // Answers are written whole; if this fails they come a little later.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_MAX));
    stream.set_read_timeout(Some(READ_MAX));
    stream
}

fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// At most half of the files that the process may have open.
fn connections_max() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    #[allow(unsafe_code, reason = "the standard library does not tell it")]
    // SAFETY: the pointer is to a struct of this frame, which the call fills in.
    let told = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    let files = if told == 0 { usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX) } else { 1024 };
    (files / 2).clamp(16, CONNECTIONS_MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::oneshot;
    use tower_http::compression::CompressionLayer;

    use super::*;

    async fn ask(stream: &mut TcpStream, path: &str) -> String {
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut buffer = [0; 1000];
        let read = stream.read(&mut buffer).await.unwrap();
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    }

    async fn broken() -> &'static str {
        panic!("on purpose")
    }

    #[tokio::test]
    async fn a_request_that_panics_is_answered_and_a_stop_ends_its_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let router = Router::new().route("/broken", get(broken)).route("/", get(|| async { "ok" }));
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, router, async { drop(stopped.await) }));
        assert!(ask(&mut stream, "/broken").await.starts_with("HTTP/1.1 500"));
        assert!(ask(&mut stream, "/").await.starts_with("HTTP/1.1 200"));
        drop(stop);
        server.await.unwrap().unwrap();
        assert_eq!(stream.read(&mut [0; 10]).await.unwrap(), 0);
    }

    /// A body whose parts are all there at once, so many; compressed, all fit into the buffers of a connection.
    struct Ready(Arc<AtomicUsize>);

    impl HttpBody for Ready {
        type Data = Bytes;
        type Error = axum::Error;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
            let left = self.0.load(Ordering::Relaxed);
            let Some(after) = left.checked_sub(1) else { return Poll::Ready(None) };
            self.0.store(after, Ordering::Relaxed);
            let mut bits = left as u32 | 1;
            let mut noise = || {
                bits = bits.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
                (bits >> 24) as u8
            };
            let part = (0..20_000).map(|at| if at < 3000 { noise() } else { 0 });
            Poll::Ready(Some(Ok(Frame::data(part.collect()))))
        }
    }

    #[test]
    fn a_long_answer_gives_others_their_turn() {
        // One thread, which looks at its sockets whenever it has a turn to give.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(1).build().unwrap();
        runtime.block_on(a_short_answer_beside_a_long_one());
    }

    async fn a_short_answer_beside_a_long_one() {
        // One that was compressed held its thread to its end, and whoever waited there: `/healthz` for a second and more.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let left = Arc::new(AtomicUsize::new(400));
        let body = Arc::clone(&left);
        let long = get(|| async { Response::new(Body::new(Ready(body))) }).layer(CompressionLayer::new());
        let router = Router::new().route("/long", long).route("/", get(|| async { "ok" }));
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, router, async { drop(stopped.await) }));
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /long HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n").await.unwrap();
        let mut head = [0; 15];
        slow.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert!(ask(&mut stream, "/").await.starts_with("HTTP/1.1 200"));
        let left = left.load(Ordering::Relaxed);
        assert!(left > 100, "only {left} parts are still to come");
        drop((stop, slow, stream));
        server.await.unwrap().unwrap();
    }
}
