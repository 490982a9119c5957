//! Spellings of a path that try to leave `/api/comments/*` for a service beside it, or to pass a permission.

use crate::{smuggling::Arena, world::WEBSITE_KEY};

/// Spelling, status, and for 200 what `comments` receives.
const SPELLINGS: &[(&str, u16, &str)] = &[
    // Dot segments, plain and encoded.
    ("/api/comments/../admin/x", 400, ""),
    ("/api/comments/../../admin/x", 400, ""),
    ("/api/comments/a/../../../admin/x", 400, ""),
    ("/api/comments/%2e%2e/%2e%2e/admin/x", 400, ""),
    ("/api/comments/%2E%2E/%2E%2E/admin/x", 400, ""),
    ("/api/comments/.%2e/x", 400, ""),
    ("/api/comments/%2e./x", 400, ""),
    ("/api/comments/..", 400, ""),
    ("/api/comments/.", 400, ""),
    ("/api/comments/%2e", 400, ""),
    ("/api/comments/./x", 400, ""),
    ("/./admin/x", 400, ""),
    ("/../admin/x", 400, ""),
    ("/api/comments/x/..?q", 400, ""),
    // With path parameters, which Java servers cut off.
    ("/api/comments/..;/..;/admin/x", 400, ""),
    ("/api/comments/..;a=b/x", 400, ""),
    ("/api/comments/.;/x", 400, ""),
    ("/api/comments/..%3b/x", 400, ""),
    ("/api/comments/%2e%2e%3Bx/y", 400, ""),
    ("/api/comments/x;/../../admin/x", 400, ""),
    // Slashes and backslashes in disguise.
    ("/api/comments/..%2f..%2fadmin/x", 400, ""),
    ("/api/comments/..%2F..%2Fadmin/x", 400, ""),
    ("/api/comments%2fx", 400, ""),
    ("/admin%2fx", 400, ""),
    ("/api/comments/..%5c..%5cadmin/x", 400, ""),
    ("/api/comments/..\\..\\admin\\x", 400, ""),
    ("/api/comments\\..\\x", 400, ""),
    ("\\admin\\x", 400, ""),
    // Empty segments.
    ("//admin/x", 400, ""),
    ("/api//comments/x", 400, ""),
    ("/api/comments//x", 400, ""),
    ("/api/comments/x//", 400, ""),
    ("///", 400, ""),
    // Control characters, raw and encoded; other bytes.
    ("/api/comments/x%00", 400, ""),
    ("/api/comments/x%00/../../admin/x", 400, ""),
    ("/api/comments/x%0d%0aX-API-Key-Name:%20Admin", 400, ""),
    ("/api/comments/x%09y", 400, ""),
    ("/api/comments/x%1f", 400, ""),
    ("/api/comments/x%7f", 400, ""),
    ("/api/comments/x\u{1}", 400, ""),
    ("/api/comments/x\u{7f}", 400, ""),
    ("/api/comments/\u{e9}", 400, ""),
    // Escapes that are none, or longer than need be.
    ("/api/comments/%", 400, ""),
    ("/api/comments/%2", 400, ""),
    ("/api/comments/%zz", 400, ""),
    ("/api/comments/%u002e%u002e/admin/x", 400, ""),
    ("/api/comments/%c0%ae%c0%ae/admin/x", 400, ""),
    ("/api/comments/%c0%af..%c0%afadmin/x", 400, ""),
    ("/api/comments/%e0%80%ae%e0%80%ae/x", 400, ""),
    ("/api/comments/%f0%80%80%ae/x", 400, ""),
    // Fragments, other forms of a target.
    ("/api/comments/x#/../../admin/x", 400, ""),
    ("/admin/x#/api/comments/x", 400, ""),
    ("api/comments/x", 400, ""),
    ("?/api/comments/x", 400, ""),
    ("admin/x", 400, ""),
    // Case and trailing slash: other paths, and whose they are decides.
    ("/API/COMMENTS/x", 404, ""),
    ("/Api/comments/x", 404, ""),
    ("/api/Comments/x", 403, ""),
    ("/api/comments", 403, ""),
    ("/api/comments/", 403, ""),
    ("/api/comments%20/x", 403, ""),
    ("/api/comments;/x", 403, ""),
    ("/api/comments;v=1/x", 403, ""),
    ("/admin", 404, ""),
    ("/admin/", 404, ""),
    ("/ADMIN/x", 404, ""),
    ("/admin;/x", 404, ""),
    ("/admin%3b/x", 404, ""),
    // Another spelling of a path that needs a permission the key has not.
    ("/admin/x", 403, ""),
    ("/admin/x/", 403, ""),
    ("/%61dmin/x", 403, ""),
    ("/%61%64%6d%69%6E/x", 403, ""),
    ("/admin/;/x", 403, ""),
    ("/admin/%252e%252e/api/comments/x", 403, ""),
    // Internal paths, in other spellings too.
    ("/internal/services", 404, ""),
    ("/%69nternal/services", 404, ""),
    ("/internal/../api/comments/x", 400, ""),
    // What stays inside is forwarded as what it was matched as.
    ("/api/comments/x", 200, "/api/comments/x"),
    ("/%61pi/comm%65nts/x", 200, "/api/comments/x"),
    ("/api/comments/%2e%2e%2e", 200, "/api/comments/..."),
    ("/api/comments/..x", 200, "/api/comments/..x"),
    ("/api/comments/%252e%252e/admin/x", 200, "/api/comments/%252e%252e/admin/x"),
    ("/api/comments/%252f", 200, "/api/comments/%252f"),
    ("/api/comments/x;/y", 200, "/api/comments/x;/y"),
    ("/api/comments/;", 200, "/api/comments/;"),
    ("/api/comments/*", 200, "/api/comments/*"),
    ("/api/comments/x?/../../admin/x", 200, "/api/comments/x?/../../admin/x"),
    ("/api/comments/x?a=%2f..%2f..%2fadmin", 200, "/api/comments/x?a=%2f..%2f..%2fadmin"),
    ("/api/comments/%c3%a9", 200, "/api/comments/%C3%A9"),
    ("/api/comments/%3f/../x", 400, ""),
    ("/api/comments/%3fq", 200, "/api/comments/%3Fq"),
];

#[test]
fn no_spelling_of_a_path_reaches_another_service_or_passes_a_permission() {
    let arena = Arena::start();
    for (path, status, target) in SPELLINGS {
        let before = arena.comments.requests().len();
        let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\n\r\n");
        let statuses = arena.send(request.as_bytes());
        assert_eq!(statuses.first(), Some(status), "{path:?}");
        let targets: Vec<_> = arena.comments.requests().split_off(before).into_iter().map(|seen| seen.target).collect();
        let expected: &[&str] = if *status == 200 { &[target] } else { &[] };
        assert_eq!(targets, expected, "{path:?}");
    }
    assert!(arena.wide.requests().is_empty() && arena.admin.requests().is_empty());
    assert_eq!(arena.comments.faults(), [""; 0]);
}

#[test]
fn the_same_holds_for_every_method() {
    let arena = Arena::start();
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PROPFIND"] {
        for path in ["/api/comments/%2e%2e/%2e%2e/admin/x", "/api/comments/..;/x", "//admin/x", "/api/comments/..%2fx", "/admin/x"] {
            let request = format!("{method} {path} HTTP/1.1\r\nHost: h\r\nX-API-Key: {WEBSITE_KEY}\r\nConnection: close\r\n\r\n");
            let mut client = crate::client::Client::new(arena.furt.public);
            client.write(request).expect("sent");
            let status = client.read(method).expect("an answer").status;
            assert_eq!(status, if path == "/admin/x" { 403 } else { 400 }, "{method} {path}");
        }
    }
    assert!(arena.comments.requests().is_empty() && arena.wide.requests().is_empty() && arena.admin.requests().is_empty());
}
