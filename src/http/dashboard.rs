//! `/`: the page, as `make dashboard` bundled it from `dashboard/`. It asks the same API that everybody asks.

use axum::Router;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tower_http::compression::CompressionLayer;

/// Where each file is, its content type, and what is in it.
const FILES: [(&str, &str, &[u8]); 3] = [
    ("/", "text/html; charset=utf-8", include_bytes!("../../dashboard/dist/index.html")),
    ("/app.js", "text/javascript; charset=utf-8", include_bytes!("../../dashboard/dist/app.js")),
    ("/app.css", "text/css; charset=utf-8", include_bytes!("../../dashboard/dist/app.css")),
];

/// Names and tags on the page come from outside: scripts, styles and answers are this collector's alone, nothing frames the page,
/// and it tells nobody where it was.
const SECURITY_HEADERS: [(HeaderName, &str); 3] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
];

/// The files of the page.
pub(super) fn routes() -> Router {
    let mut router = Router::new();
    for (path, content_type, bytes) in FILES {
        // Weak: with gzip it is the same page in other bytes.
        let tag = format!("W/\"{:08x}-{}\"", crc32fast::hash(bytes), bytes.len());
        let file = move |headers: HeaderMap| async move { answer(content_type, bytes, &tag, &headers) };
        router = router.route(path, get(file));
    }
    router.layer(CompressionLayer::new())
}

fn answer(content_type: &'static str, bytes: &'static [u8], tag: &str, headers: &HeaderMap) -> Response {
    // Asked each time, answered with 304 unless another version serves: nobody sees an old page with a new API.
    let always = (SECURITY_HEADERS, [(header::CACHE_CONTROL, "no-cache"), (header::ETAG, tag)]);
    if headers.get_all(header::IF_NONE_MATCH).iter().any(|known| names(known, tag)) {
        return (StatusCode::NOT_MODIFIED, always).into_response();
    }
    (always, [(header::CONTENT_TYPE, content_type)], bytes).into_response()
}

/// Whether a tag is among those that the client knows, be it weak or strong.
fn names(known: &HeaderValue, tag: &str) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let known = known.to_str().unwrap_or_default();
    known.trim() == "*" || known.split(',').any(|one| opaque(one) == opaque(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_the_browser_has_is_not_sent_again() {
        let status = |known: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.extend(known.map(|known| (header::IF_NONE_MATCH, HeaderValue::from_static(known))));
            answer("text/css", b"a {}", "W/\"5-4\"", &headers).status()
        };
        for known in ["W/\"5-4\"", "\"5-4\"", "\"1\", W/\"5-4\"", "*"] {
            assert_eq!(status(Some(known)), StatusCode::NOT_MODIFIED, "{known}");
        }
        for known in [None, Some("W/\"5-5\""), Some("\"1\"")] {
            assert_eq!(status(known), StatusCode::OK, "{known:?}");
        }
    }

    #[test]
    fn the_page_is_small_and_has_nothing_that_its_policy_forbids() {
        let all: usize = FILES.iter().map(|(_, _, bytes)| bytes.len()).sum();
        assert!(all < 150_000, "the page has {all} bytes, want less than 150,000");
        let page = String::from_utf8_lossy(FILES[0].2);
        for inline in ["<style", "style=", "onclick", "<script>"] {
            assert!(!page.contains(inline), "{inline}");
        }
    }
}
