//! The acceptance of furt.conf: what parses, and what every wrong one is told.

use std::{collections::BTreeSet, io, path::Path, time::Duration};

use super::*;

const EXAMPLE: &str = include_str!("../../furt.conf.example");

/// The whole example of DESIGN §3, but for the digests and the keys that belong to later versions.
const DESIGN: &str = r#"
[server]
host = 127.0.0.1
port = 7811
log_level = info              ; error warn info debug trace
log_format = text             ; text json
log_requests = true           ; access log
client_timeout = 10           ; seconds for a request head to arrive
body_idle_timeout = 30        ; seconds between two pieces of a body, either way; not for text/event-stream, gRPC and upgrades
workers = auto                ; data-plane threads
max_body_size = 10 MiB        ; 0 = no limit
max_connections = 20000
trusted_proxies = 127.0.0.1, ::1   ; their X-Forwarded-For is believed, the rightmost untrusted address is the client
ip_rate_limit =               ; per client address, e.g. 600/min; none when empty
state_dir = /var/lib/furt     ; by default ./furt-state when not run as a system service
tls_cert =                    ; with tls_key: the public listener speaks TLS
tls_key =
add_headers =                 ; on every proxied answer, e.g. X-Frame-Options: DENY

[gateway]
enabled = true
listen = 127.0.0.1:7810
health_check_interval = 30
health_check_timeout = 5
down_check_interval = 120
max_consecutive_failures = 3
stop_ping_after_failures = 10
forget_parked_after = 86400   ; 0 = never; never a service's last instance
allow_registration_from = 127.0.0.1, 10.0.0.0/8
registration_rate = 60/min    ; per peer address and service name, burst of the same size; a hundred times that per peer address
store = embedded              ; or etcd://host:2379[,host:2379]/prefix
upstream_timeout = 30         ; seconds to the head of the answer; a route may set its own
health_detail = auto          ; auto full names: what /health shows (§6)

[service "sagjan"]            ; a grant. Label "*" is the default grant. No grant: refused, and the error shows the lines to add
permissions = comments:*
paths = /api/comments, /api/comments/*   ; without it: any path that is nobody else's
hosts =                       ; hosts its routes may name; without it: routes name none
from =                        ; peers that may register it; default allow_registration_from
upstreams =                   ; CIDRs its urls may point to; default: the registering peer's own address
token_sha256 =                ; when set, registering needs Authorization: Bearer TOKEN
max_instances = 16            ; parked ones do not count
allow_public = false          ; may it register routes that need no key

[route "legacy-mail"]         ; a static route; always wins over a registered one
methods = POST
path = /v1/mail/send
url = http://127.0.0.1:7825
permission = mail:send        ; or: public = true
set_headers = X-API-Key: ${MAIL_KEY}

[api_key "website-name"]      ; without key_sha256 the label is the key itself
name = Website                ; the caller's name; default: the label
key_sha256 = 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08, 60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752
permissions = comments:read, comments:write
allowed_ips = 127.0.0.1, 10.0.0.0/8
rate_limit = 600/min          ; exact for the process, not per worker; none when absent
expires = 2027-01-31T00:00:00Z

[cors]
allowed_origins = https://example.org
"#;

fn environment(name: &str) -> Option<String> {
    match name {
        "MAIL_KEY" => Some("s3cret, with comma".into()),
        "NETS" => Some("10.0.0.0/8, 192.168.0.0/16".into()),
        "BAD" => Some("hunter2".into()),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

fn files(path: &Path) -> io::Result<String> {
    match path.to_str() {
        Some("etc/key.sha256") => Ok("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n".into()),
        Some("etc/two-lines") => Ok("a\nb\n".into()),
        _ => Err(io::Error::new(io::ErrorKind::NotFound, "not there")),
    }
}

fn around(environment: &dyn Fn(&str) -> Option<String>) -> Surroundings<'_> {
    Surroundings {
        environment,
        read_file: &files,
        open_to_all: &|_| false,
        system_authorities: &Vec::new,
        now: Duration::from_secs(1_800_000_000),
        descriptors: Some(100_000),
        cores: 4,
        process_id: 42,
    }
}

fn read_as(text: &str, file: &str) -> Result<Config, Report> {
    parse(text, file, &around(&environment))
}

fn good(text: &str) -> Config {
    read_as(text, "etc/furt.conf").unwrap_or_else(|report| panic!("{report}"))
}

fn lines(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(|finding| finding.to_string().replacen("furt.conf:", "", 1)).collect()
}

#[track_caller]
fn bad(text: &str, expected: &[&str]) {
    let report = read_as(text, "furt.conf").expect_err(text);
    assert_eq!(lines(&report.errors), expected, "{text}");
}

#[track_caller]
fn odd(text: &str, expected: &[&str]) {
    let config = read_as(text, "furt.conf").unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(lines(&config.warnings), expected, "{text}");
}

#[test]
fn the_example_parses_without_a_word_and_holds_every_key_with_its_default() {
    let config = good(EXAMPLE);
    assert_eq!(config.warnings, []);
    let (sections, _) = text::read(EXAMPLE);
    for kind in keys::KINDS {
        let section = sections.iter().find(|section| section.name == kind.name).expect(kind.name);
        let known: BTreeSet<_> = kind.keys.iter().map(|key| key.name).collect();
        let written: BTreeSet<_> = section.entries.iter().map(|entry| &*entry.key).collect();
        assert_eq!(written, known, "[{}]", kind.name);
        for entry in section.entries.iter().filter(|_| !kind.labelled) {
            assert_eq!(entry.value.whole, kind.key(&entry.key).unwrap().default, "{}", entry.key);
        }
        assert!(kind.keys.iter().all(|key| !key.doc.is_empty()));
    }
}

#[test]
fn state_is_kept_where_systemd_says_only_by_the_process_that_it_started() {
    let check = |variables: &[(&str, &str)], expected: &str| {
        let environment = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        assert_eq!(parse("", "furt.conf", &around(&environment)).unwrap().state_dir, Path::new(expected), "{variables:?}");
    };
    check(&[], "./furt-state");
    check(&[("STATE_DIRECTORY", "/srv/state:/other")], "/srv/state");
    check(&[("INVOCATION_ID", "1f")], "/var/lib/furt");
    check(&[("INVOCATION_ID", "1f"), ("SYSTEMD_EXEC_PID", "42")], "/var/lib/furt");
    check(&[("INVOCATION_ID", "1f"), ("SYSTEMD_EXEC_PID", "7")], "./furt-state");
}

#[test]
fn who_locks_the_operator_out_is_told() {
    let off = "[gateway]\nallow_registration_from = 127.0.0.1\nloopback_is_operator = false\n";
    odd(off, &["3: loopback_is_operator: nobody is operator then: add a [token \"name\"] with role = operator"]);
    let digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    odd(&format!("{off}[token \"ops\"]\nrole = operator\nsha256 = {digest}\n"), &[]);
}

#[test]
fn an_empty_file_is_every_default() {
    let config = good("");
    assert_eq!(config.warnings, []);
    assert!(config.enabled);
    assert_eq!((config.data.listen.to_string(), config.control.listen.to_string()), ("127.0.0.1:7811".into(), "127.0.0.1:7810".into()));
    assert_eq!((config.data.workers, config.data.max_body_size, config.data.max_connections), (4, Some(10 << 20), 20_000));
    assert_eq!(config.data.internal, Some(config.control.listen));
    let data = &config.data;
    assert_eq!((data.max_header_size, data.max_headers, data.max_uri_length), (64 << 10, 100, 8 << 10));
    assert_eq!((data.max_connections_per_address, data.h2_max_streams, data.max_idle_upstream), (Some(1000), 128, 256));
    assert_eq!(data.failed_key_limit.map(|rate| rate.to_string()).as_deref(), Some("600/min"));
    let seconds = [data.client_idle_timeout, data.connect_timeout, data.upstream_idle_timeout, data.slow_start].map(|time| time.as_secs());
    assert_eq!((seconds, data.deadline), ([75, 5, 30, 0], None));
    assert!(data.tls.is_none() && config.tls.is_none());
    let probing = &config.control.probing;
    let seconds = [probing.interval, probing.timeout, probing.down_interval].map(|duration| duration.as_secs());
    assert_eq!((seconds, probing.down_after, probing.park_after), ([30, 5, 120], 3, 10));
    assert_eq!(probing.forget_parked_after, Some(Duration::from_secs(86_400)));
    assert_eq!(config.state_dir, Path::new("./furt-state"));
    assert_eq!(config.control.registration_rate.to_string(), "60/min");
    assert_eq!(config.control.allow_registration_from.to_string(), "127.0.0.1/32, 10.0.0.0/8");
}

#[test]
fn the_whole_example_of_the_design_parses() {
    let config = good(DESIGN);
    assert_eq!(lines(&config.warnings), ["etc/35: [service]: anyone in 10.0.0.0/8 may register sagjan; set from or token_sha256"]);
    let grant = &config.control.grants[0];
    assert_eq!((grant.service.as_ref().unwrap().as_str(), grant.max_instances, grant.allow_public), ("sagjan", 16, false));
    assert_eq!(grant.paths.as_ref().map(Vec::len), Some(2));
    assert!(grant.from.is_none() && grant.upstreams.is_none() && grant.tokens.is_empty() && grant.hosts.is_empty());
    let route = &config.control.published.static_routes[0];
    assert_eq!((&*route.name, route.pattern.as_str(), route.public), ("legacy-mail", "/v1/mail/send", false));
    assert_eq!(route.set_headers[0].1, "s3cret, with comma");
    let key = &config.control.published.keys[0];
    assert_eq!((&*key.name, key.digests.len(), key.permissions.len(), key.expires_unix), ("Website", 2, 2, Some(1_801_353_600)));
    assert_eq!(config.control.published.cors_origins, ["https://example.org"]);
    assert!(!format!("{config:?}").contains("s3cret"));
}

#[test]
fn values_come_from_the_environment_and_from_files() {
    let config = good("[gateway]\nallow_registration_from = 127.0.0.1, ${NETS}\n[api_key \"a\"]\nkey_sha256_file = key.sha256\n");
    assert_eq!(config.control.allow_registration_from.to_string(), "127.0.0.1/32, 10.0.0.0/8, 192.168.0.0/16");
    assert_eq!(config.control.published.keys[0].digests[0][..2], [0x9f, 0x86]);
}

#[test]
fn the_label_can_be_the_key_and_is_kept_only_as_its_digest() {
    let label = "hugo-frontend-key-change-in-production";
    let config =
        good(&format!("[api_key \"{label}\"]\nname = \"Hugo Frontend\"\npermissions = *\nsmtp_host = x\nmail_to = y\nmail_to = z\n"));
    let key = &config.control.published.keys[0];
    assert_eq!((&*key.name, key.digests[0][..2].to_vec()), ("Hugo Frontend", sha256_start(label)));
    assert!(config.warnings.is_empty() && !format!("{config:?}").contains(label));
}

fn sha256_start(text: &str) -> Vec<u8> {
    use sha2::Digest as _;
    sha2::Sha256::digest(text)[..2].to_vec()
}

#[test]
fn other_values_are_read_as_they_say() {
    let config = good(
        "[server]\nhost = ::\nport = 0\nmax_body_size = 0\nworkers = 3\nlog_level = debug\nlog_format = json\nclient_timeout = 500ms\n\
         ip_rate_limit = 5/s\nadd_headers = X-Frame-Options: DENY, \"Permissions-Policy: camera=(), geolocation=()\"\n\
         state_dir = \"/srv/my furt\"\ntrusted_proxies = 10.1.0.0/16\n\
         max_connections_per_address = 0\nfailed_key_limit = 0\nmax_header_size = 2 KiB\nmax_uri_length = 2000\n\
         [gateway]\nenabled = false\nlisten = [::1]:0\nhosts = Furt.Internal\nloopback_is_operator = false\nhealth_detail = names\n\
         forget_parked_after = 0\ndeadline = 60\nslow_start = 20\nmax_idle_upstream = 0\n\
         [service \"*\"]\nhosts = *.example.org\nupstreams = 10.0.0.0/8\nallow_public = true\nmax_in_flight = 8\nkeep_alive = false\n\
         [route \"all\"]\nmethods = *\npath = /*\nurl = http://[::1]:9/base\npublic = true\nhost = example.org\ntimeout = 2\n\
         protocol = h2\ndeadline = 9\nmax_in_flight = 3\nkeep_alive = false\n\
         [token \"ops\"]\nrole = operator\nsha256 = 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n\
         [cors]\nallowed_origins = HTTPS://Example.org:443, http://localhost:3000, capacitor://localhost\n",
    );
    assert!(!config.enabled);
    assert_eq!((config.data.listen.to_string(), config.data.max_body_size, config.data.workers), ("[::]:0".into(), None, 3));
    assert_eq!((config.log.level, config.log.format, config.data.log_json), (Level::DEBUG, Format::Json, true));
    assert_eq!(config.data.client_timeout, Duration::from_millis(500));
    assert_eq!(config.data.add_headers[1].1, "camera=(), geolocation=()");
    assert_eq!(config.state_dir, Path::new("/srv/my furt"));
    assert_eq!(config.data.internal, None);
    assert_eq!(config.control.hosts, ["furt.internal"]);
    assert_eq!(config.control.probing.forget_parked_after, None);
    assert!(config.control.grants[0].service.is_none() && config.control.grants[0].allow_public);
    assert_eq!((config.control.grants[0].max_in_flight, config.control.grants[0].keep_alive), (8, false));
    let route = &config.control.published.static_routes[0];
    assert_eq!([route.timeout, route.deadline], [2, 9].map(|seconds| Some(Duration::from_secs(seconds))));
    assert_eq!((route.protocol.as_str(), route.max_in_flight, route.keep_alive), ("h2", 3, false));
    let data = &config.data;
    assert_eq!((data.max_connections_per_address, data.failed_key_limit, data.max_header_size), (None, None, 2048));
    assert_eq!((data.deadline, data.slow_start, data.max_idle_upstream), (Some(Duration::from_secs(60)), Duration::from_secs(20), 0));
    assert_eq!(config.control.published.cors_origins, ["https://example.org", "http://localhost:3000", "capacitor://localhost"]);
    assert_eq!(config.warnings, []);
}

#[test]
fn oddities_are_warnings() {
    odd(
        "[serve]\nx\n[security]\na = 1\n",
        &["1: [serve]: no such section (did you mean \"server\"?); it is ignored", "3: [security]: no such section; it is ignored"],
    );
    odd(
        "[server]\nprot = 1\nadmin_email = x\n",
        &[
            "2: prot: [server] has no such key (did you mean \"port\"?); it is ignored",
            "3: admin_email: [server] has no such key; it is ignored",
        ],
    );
    odd("[telemetry]\notlp_endpoint = http://x\n", &["1: [telemetry]: this version does not use it yet; it is ignored"]);
    odd("[gateway]\ndown_check_interval = 10\n", &["2: down_check_interval: down_check_interval (10) is below health_check_interval (30)"]);
    odd("[gateway]\nupstream_timeout = 2\n", &[]);
    odd(
        "[gateway]\nupstream_timeout = 2\nconnect_timeout = 3\n",
        &["3: connect_timeout: connect_timeout (3) is above upstream_timeout (2), which includes it"],
    );
    odd(
        "[server]\nmax_header_size = 4 KiB\n",
        &["2: max_header_size: max_header_size (4096) is below max_uri_length (8192), which is part of it"],
    );
    odd("[server]\nmax_connections = 200000\n", &["2: max_connections: 200000 is above the limit of 100000 open files (ulimit -n)"]);
    let key = "[api_key \"a\"]\nkey_sha256_file = etc/key.sha256\nallowed_ips = 127.0.0.1\npermissions = a:b\n";
    odd(key, &[]);
    odd(&format!("{key}[server]\ntrusted_proxies = 10.0.0.1\n"), &[]);
    odd(
        &format!("{key}[server]\ntrusted_proxies =\n"),
        &["3: allowed_ips: a loopback address without trusted_proxies lets in everyone who comes through a proxy on this machine"],
    );
    let none = "[server]\ntrusted_proxies_file = x\n";
    bad(none, &["2: trusted_proxies_file: expected a readable file at \"x\": not there"]);
    let open = "[gateway]\nallow_registration_from = 127.0.0.0/8, ::1, 10.0.0.0/8\n";
    odd(&format!("{open}[service \"a\"]\nfrom = 10.0.0.1\n"), &[]);
    odd(&format!("{open}[service \"*\"]\n"), &["3: [service]: anyone in 10.0.0.0/8 may register any service; set from or token_sha256"]);
}

#[test]
fn every_wrong_line_is_told_at_once() {
    bad(
        "port = 1\n[server]\nport = x\nlog_level = loud\nnot a key\n[gateway]\nlisten = 7810\n[route \"r\"]\npermision = a:b\n",
        &[
            "1: port: expected a [section] before the first key",
            "3: port: expected a port from 0 to 65535, got \"x\"",
            "4: log_level: expected error, warn, info, debug or trace, got \"loud\"",
            "5: expected key = value",
            "7: listen: expected an address and port such as 127.0.0.1:7810, got \"7810\"",
            "8: methods: expected methods such as GET, POST, or * for any",
            "8: path: expected a value",
            "8: url: expected a value",
            "8: permission: expected a permission, or public = true",
            "9: permision: [route] has no such key (did you mean \"permission\"?)",
        ],
    );
}

#[test]
fn keys_after_a_header_that_cannot_be_read_are_not_those_of_the_section_before() {
    let report = read_as("[gateway]\nlisten = 127.0.0.1:7810\n[service sagjan]\nlisten = x\npaths = /a\n", "furt.conf").unwrap_err();
    assert_eq!(lines(&report.errors), ["3: expected quotes around the label: [section \"label\"]"]);
    assert_eq!(report.warnings, []);
}

#[test]
fn wrong_values_of_server_and_gateway_are_told() {
    let server = |line: &str, expected: &str| bad(&format!("[server]\n{line}\n"), &[expected]);
    server("host = furt.example", "2: host: expected an address such as 127.0.0.1 or ::, got \"furt.example\"");
    server("port = 65536", "2: port: expected a port from 0 to 65535, got \"65536\"");
    server("port = +1", "2: port: expected a port from 0 to 65535, got \"+1\"");
    server("log_format = xml", "2: log_format: expected text or json, got \"xml\"");
    server("log_requests = yes", "2: log_requests: expected true or false, got \"yes\"");
    server("client_timeout = 0", "2: client_timeout: expected a duration above 0, got \"0\"");
    server("body_idle_timeout = 1h", "2: body_idle_timeout: expected seconds such as 30, or milliseconds such as 500ms, got \"1h\"");
    server("workers = 0", "2: workers: expected auto or a number from 1 to 1024, got \"0\"");
    server("max_body_size = 10 GB", "2: max_body_size: expected a size such as 65536, 64 KiB or 10 MiB, got \"10 GB\"");
    server("max_body_size = MiB", "2: max_body_size: expected a size such as 65536, 64 KiB or 10 MiB, got \"MiB\"");
    server("max_connections = 0", "2: max_connections: expected a number from 1 to 100000000, got \"0\"");
    server("trusted_proxies = proxy", "2: trusted_proxies: expected an address or network such as 10.0.0.0/8, got \"proxy\"");
    server("ip_rate_limit = 10", "2: ip_rate_limit: expected a rate such as 10/s, 600/min or 1000/h, got \"10\"");
    server("client_idle_timeout = 0", "2: client_idle_timeout: expected a duration above 0, got \"0\"");
    server("max_header_size = 2 MiB", "2: max_header_size: expected a size from 1 KiB to 1 MiB, got \"2 MiB\"");
    server("max_headers = 0", "2: max_headers: expected a number from 1 to 10000, got \"0\"");
    server("max_uri_length = 64 KiB", "2: max_uri_length: expected a size from 256 to 65534, got \"64 KiB\"");
    server("max_connections_per_address = -1", "2: max_connections_per_address: expected a number from 0 to 100000000, got \"-1\"");
    server("h2_max_streams = 0", "2: h2_max_streams: expected a number from 1 to 100000, got \"0\"");
    server("failed_key_limit = 10", "2: failed_key_limit: expected a rate such as 10/s, 600/min or 1000/h, got \"10\"");
    server("add_headers = X", "2: add_headers: expected headers such as \"Name: value\" with a value in visible ASCII");
    server("add_headers = Content-Length: 1", "2: add_headers: expected a header that does not frame the message, content-length does");
    server("add_headers = A: 1, a: 2", "2: add_headers: expected each header once, one is there twice");
    server("port = 1\nport = 2", "3: port: expected once, it is set in line 2 already");
    server("port = \"1", "2: port: expected a closing quote");
    server("port = ${PORT}", "2: port: expected ${PORT} in the environment, it is not set");
    server("port = ${EMPTY}", "2: port: expected a value in ${EMPTY}, it is set but empty");
    server("port = ${BAD}", "2: port: expected a port from 0 to 65535");
    server("port = ${BAD", "2: port: expected ${NAME} with a name of letters, digits and \"_\"");
    server("port_file = etc/two-lines", "2: port_file: expected one line of text in \"etc/two-lines\"");
    server("[server]", "2: [server]: expected once, it begins in line 1 already");
    server("[server \"a\"]", "2: [server]: expected no label: [server]");
    server("[service]", "2: [service]: expected a label: [service \"name\"]");

    let gateway = |line: &str, expected: &str| bad(&format!("[gateway]\n{line}\n"), &[expected]);
    gateway(
        "health_check_timeout = 31",
        "2: health_check_timeout: expected health_check_timeout (31) to be at most health_check_interval (30)",
    );
    gateway(
        "health_check_interval = 500ms",
        "2: health_check_interval: expected health_check_timeout (5) to be at most health_check_interval (500ms)",
    );
    gateway(
        "stop_ping_after_failures = 3",
        "2: stop_ping_after_failures: expected stop_ping_after_failures (3) to be greater than max_consecutive_failures (3)",
    );
    gateway("connect_timeout = 0", "2: connect_timeout: expected a duration above 0, got \"0\"");
    gateway("deadline = 0", "2: deadline: expected a duration above 0, got \"0\"");
    gateway("max_idle_upstream = many", "2: max_idle_upstream: expected a number from 0 to 1000000, got \"many\"");
    gateway("slow_start = x", "2: slow_start: expected seconds such as 30, or milliseconds such as 500ms, got \"x\"");
    gateway("max_consecutive_failures = 0", "2: max_consecutive_failures: expected a number from 1 to 1000000, got \"0\"");
    gateway("store = etcd://a:2379/furt", "2: store: expected embedded: a store in etcd is not supported by this version yet");
    gateway("store = redis", "2: store: expected embedded, got \"redis\"");
    gateway("health_detail = all", "2: health_detail: expected auto, full or names, got \"all\"");
    gateway("hosts = *.a.org", "2: hosts: expected a host name without port, got \"*.a.org\"");
    gateway("listen = 127.0.0.1:7811", "2: listen: expected another address than the public listener's, 127.0.0.1:7811");
    gateway("listen = 0.0.0.0:7811", "2: listen: expected another address than the public listener's, 127.0.0.1:7811");
    gateway("listen = ::1:7811", "2: listen: expected an address and port such as 127.0.0.1:7810, got \"::1:7811\"");
    gateway("allow_registration_from = ,", "2: allow_registration_from: expected a list with something in it");
    gateway("registration_rate = 0/min", "2: registration_rate: expected a rate such as 10/s, 600/min or 1000/h, got \"0/min\"");
    bad(
        "[cors]\nallowed_origins = https://a.org/, a.org",
        &[
            "2: allowed_origins: expected an origin such as https://example.org, or *, got \"https://a.org/\"",
            "2: allowed_origins: expected an origin such as https://example.org, or *, got \"a.org\"",
        ],
    );
}

#[test]
fn wrong_grants_are_told() {
    let grant = |line: &str, expected: &str| bad(&format!("[service \"a\"]\n{line}\n"), &[expected]);
    grant("permission = a:b", "2: permission: [service] has no such key (did you mean \"permissions\"?)");
    grant("permissions = a:*:b", "2: permissions: expected \"*\", \"area:*\" or \"area:action\", got \"a:*:b\"");
    grant("paths = /a//b", "2: paths: a path must not have empty segments (\"//\"), got \"/a//b\"");
    grant("token_sha256 = hunter2", "2: token_sha256: expected a SHA-256 as 64 hex digits (printf %s KEY | sha256sum)");
    grant("max_instances = 0", "2: max_instances: expected a number from 1 to 100000, got \"0\"");
    grant("allow_public = 1", "2: allow_public: expected true or false, got \"1\"");
    grant("from = ${EMPTY}", "2: from: expected a value in ${EMPTY}, it is set but empty");
    bad(
        "[service \"A b\"]\n",
        &["1: [service]: a service name must match [a-z0-9]([a-z0-9-]{0,62}), got \"A b\"; \"*\" is the default grant"],
    );
}

#[test]
fn wrong_static_routes_are_told() {
    const ROUTE: &str = "[route \"r\"]\nmethods = GET\n";
    let route = |lines: &str, expected: &str| bad(&format!("{ROUTE}{lines}\n"), &[expected]);
    route("path = /a\nurl = http://h\n", "1: permission: expected a permission, or public = true");
    route(
        "path = /a\nurl = http://h\npermission = a:b\npublic = true",
        "6: public: expected either a permission or public = true, not both",
    );
    route("path = /a\nurl = http://h\npublic = true\nprotocol = h3", "6: protocol: expected http1 or h2, got \"h3\"");
    route("path = /a\nurl = http://h\npublic = true\ndeadline = 0", "6: deadline: expected a duration above 0, got \"0\"");
    route("path = /a\nurl = http://me:hunter2@h\npublic = true", "4: url: a url must not have a user or password");
    route(
        "path = /health\nurl = http://h\npublic = true",
        "3: path: expected a path that is not at or under /health, which furt answers itself",
    );
    route(
        "path = /internal/*\nurl = http://h\npublic = true",
        "3: path: expected a path that is not at or under /internal, which furt answers itself",
    );
    route(
        "path = /a\nurl = http://h\npublic = true\nset_headers = X-API-Key hunter2",
        "6: set_headers: expected headers such as \"Name: value\" with a value in visible ASCII",
    );
    route("path = /a\nurl = http://h\npermission = a:*", "5: permission: a permission must be concrete, without \"*\", got \"a:*\"");
    bad(
        "[route \"r\"]\nmethods = get, CONNECT\npath = /a\nurl = http://h\npublic = true\n",
        &[
            "2: methods: a method must be an upper-case token of up to 32 bytes or \"*\", got \"get\"",
            "2: methods: CONNECT cannot be routed",
        ],
    );
    let twice = |name: &str| format!("[route \"{name}\"]\nmethods = GET, POST\npath = /a\nurl = http://h\npublic = true\n");
    bad(
        &(twice("a") + &twice("b").replace("GET, ", "")),
        &["6: path: expected a place of its own, the route of line 1 has the same host, path and POST"],
    );
}

#[test]
fn wrong_callers_are_told_without_a_word_of_their_secrets() {
    const HASH: &str = "key_sha256 = 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n";
    odd(
        &format!("[api_key \"a\"]\n{HASH}permissions = ; e.g. a:b\n"),
        &["3: permissions: a key without permissions opens only routes that ask for none; e.g. comments:read, comments:write"],
    );
    let short =
        "1: [api_key]: expected key_sha256, or as label a key of at least 32 characters of visible ASCII (furt key new NAME makes one)";
    bad("[api_key \"hunter2\"]\nname = a\n", &[short]);
    bad("[api_key \"website\"]\npermissions = a:b\n", &[short]);
    let nameless = "1: name: expected a name: without key_sha256 the label is the key itself, which is no name";
    bad("[api_key \"hunter2hunter2hunter2hunter2hunter2\"]\n", &[nameless]);
    bad("[api_key \"a\"]\nkey_sha256 =\n", &["2: key_sha256: expected a SHA-256 as 64 hex digits, or two during rotation"]);
    bad("[api_key \"a\"]\nkey_sha256 = hunter2\n", &["2: key_sha256: expected a SHA-256 as 64 hex digits (printf %s KEY | sha256sum)"]);
    bad(&format!("[api_key \"ä\"]\n{HASH}"), &["1: [api_key]: expected a label in visible ASCII of up to 256 bytes, or a name"]);
    bad(&format!("[api_key \"a\"]\n{HASH}name = ä\n"), &["3: name: expected a name in visible ASCII of up to 256 bytes, got \"ä\""]);
    bad(
        &format!("[api_key \"a\"]\n{HASH}allowed_ip = ::1\n"),
        &["3: allowed_ip: [api_key] has no such key (did you mean \"allowed_ips\"?)"],
    );
    bad(&format!("[api_key \"a\"]\n{HASH}expires = soon\n"), &["3: expires: expected a time such as 2027-01-31T00:00:00Z, got \"soon\""]);
    bad(
        &format!("[api_key \"a\"]\n{HASH}[api_key \"b\"]\n{HASH}"),
        &["3: key_sha256: expected a key of its own, that of line 1 is the same"],
    );
    let other = HASH.replace('9', "8");
    bad(
        &format!("[api_key \"a\"]\n{HASH}[api_key \"b\"]\nname = a\n{other}"),
        &["3: name: expected a name of its own, the key of line 1 has it too"],
    );
    bad(
        &format!("[api_key \"a\"]\n{HASH}[api_key \"a\"]\n{other}"),
        &["3: [api_key]: expected once, it begins in line 1 already", "3: name: expected a name of its own, the key of line 1 has it too"],
    );
    bad(
        "[token \"t\"]\nrole = admin\n",
        &[
            "1: sha256: expected a SHA-256 as 64 hex digits, or two during rotation",
            "2: role: expected registrar, reader, operator or data-plane, got \"admin\"",
        ],
    );
    let report = read_as("[api_key \"hunter2\"]\nname = ä\nnothing hunter2\n[token \"t\"]\nsha256 = hunter2\n", "f").unwrap_err();
    assert!(!format!("{report} {report:?}").contains("hunter2"));
}

#[test]
fn the_gateway_is_found_in_any_file() {
    let around = |text: &str| {
        let path = std::env::temp_dir().join(format!("furt-config-{}.conf", std::process::id()));
        fs::write(&path, text).unwrap();
        let address = gateway_address(Some(&path)).to_string();
        fs::remove_file(path).unwrap();
        address
    };
    assert_eq!(around("[gateway]\nlisten = 0.0.0.0:99\n[api_key \"x\"]\n"), "127.0.0.1:99");
    assert_eq!(around(""), "127.0.0.1:7810");
}

proptest::proptest! {
    #[test]
    fn no_text_trips_the_parser(text in "(\\[(server|gateway|api_key|route|cors|x)( \"[a-z*]{0,40}\")?\\]\n|[a-z_]{1,8} ?= ?[\"a-z0-9,;# ${}:/*]{0,20}\n|\\PC{0,30}\n){0,12}") {
        let _ = read_as(&text, "f");
    }
}
