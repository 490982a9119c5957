//! Every section and key of furt.conf: the one table that defaults, hints and `furt.conf.example`
//! hold to.

/// One key of a section.
pub struct Key {
    /// As it is written.
    pub name: &'static str,
    /// The value when it is absent or empty; empty: none.
    pub default: &'static str,
    /// Why one would set it.
    pub doc: &'static str,
}

/// One kind of section.
pub struct Kind {
    /// The word in the brackets.
    pub name: &'static str,
    /// Whether it takes a label, and then must.
    pub labelled: bool,
    /// Whether an unknown key is an error: where a typo could remove a restriction.
    pub strict: bool,
    /// Its keys.
    pub keys: &'static [Key],
}

impl Kind {
    /// The key of that name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

/// Sections of other ways to run furt; this version reads nothing from them.
pub const LATER: [&str; 3] = ["control_plane", "data_plane", "telemetry"];

/// The kind of that name.
pub fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

const fn key(name: &'static str, default: &'static str, doc: &'static str) -> Key {
    Key { name, default, doc }
}

/// Every kind of section.
pub const KINDS: &[Kind] = &[SERVER, GATEWAY, SERVICE, ROUTE, API_KEY, TOKEN, CORS];

const SERVER: Kind = Kind {
    name: "server",
    labelled: false,
    strict: false,
    keys: &[
        key("host", "127.0.0.1", "address of the public listener"),
        key("port", "7811", "port of the public listener; 0 takes a free one"),
        key("log_level", "info", "error, warn, info, debug or trace"),
        key("log_format", "text", "text or json"),
        key("log_requests", "true", "one line for each request"),
        key("client_timeout", "10", "seconds for a TLS handshake, and for a request head to arrive"),
        key("client_idle_timeout", "75", "seconds that a connection may be idle between two requests"),
        key("body_idle_timeout", "30", "seconds between two pieces of a body, either way"),
        key("workers", "auto", "threads that serve the public listener; auto: one for each core"),
        key("max_body_size", "10 MiB", "of a request; 0 = no limit"),
        key("max_header_size", "64 KiB", "of a request: its request line and header fields"),
        key("max_headers", "100", "header fields of a request"),
        key("max_uri_length", "8 KiB", "of a request: its path and query"),
        key("max_connections", "20000", "client connections at once"),
        key("max_connections_per_address", "1000", "from one address, trusted_proxies excepted; 0 = no limit"),
        key("h2_max_streams", "128", "requests at once on one HTTP/2 connection"),
        key("trusted_proxies", "127.0.0.1, ::1", "their X-Forwarded-For is believed"),
        key("ip_rate_limit", "", "for each client address, e.g. 600/min"),
        key("failed_key_limit", "600/min", "keys that are not valid, for each client address; 0 = no limit"),
        key("state_dir", "", "where furt keeps what must survive a restart"),
        key("tls_cert", "", "with tls_key: the public listener speaks TLS; PEM, several for several hosts"),
        key("tls_key", "", "the private key of each certificate, in the same order"),
        key("tls_client_ca", "", "whom certificates of clients have to lead to; empty: none is asked for"),
        key("tls_client_auth", "", "with tls_client_ca: required or optional; empty: required"),
        key("add_headers", "", "on every proxied answer, e.g. X-Frame-Options: DENY"),
    ],
};

const GATEWAY: Kind = Kind {
    name: "gateway",
    labelled: false,
    strict: false,
    keys: &[
        key("enabled", "true", "false: no internal listener, static routes only"),
        key("listen", "127.0.0.1:7810", "the internal listener: registration, introspection, /metrics"),
        key("hosts", "", "host names that it answers to, besides addresses and localhost"),
        key("loopback_is_operator", "true", "whether a peer on this machine may do everything there"),
        key("health_check_interval", "30", "seconds from probe to probe"),
        key("health_check_timeout", "5", "seconds for a probe to be answered"),
        key("down_check_interval", "120", "seconds from probe to probe while DOWN"),
        key("max_consecutive_failures", "3", "misses in a row until DOWN"),
        key("stop_ping_after_failures", "10", "misses in a row until the probes stop"),
        key("forget_parked_after", "86400", "seconds; 0 = never; never a service's last instance"),
        key("allow_registration_from", "127.0.0.1, 10.0.0.0/8", "peers that may talk to the internal listener"),
        key("registration_rate", "60/min", "for each peer address and service name"),
        key("store", "embedded", "where registrations are kept"),
        key("connect_timeout", "5", "seconds for a connection to a service, its TLS handshake included"),
        key("upstream_timeout", "30", "seconds to the head of the answer; a route may set its own"),
        key("deadline", "", "seconds to the end of the answer, not for upgrades; a route may set its own; empty: none"),
        key("max_idle_upstream", "256", "idle connections to one address"),
        key("upstream_idle_timeout", "30", "seconds that a connection to a service may be idle"),
        key("slow_start", "0", "seconds until a copy that was DOWN has its whole share again"),
        key("upstream_ca", "system", "whom certificates of https services have to lead to: PEM files, and the word system"),
        key("health_detail", "auto", "what /health shows: auto, full or names"),
    ],
};

const SERVICE: Kind = Kind {
    name: "service",
    labelled: true,
    strict: true,
    keys: &[
        key("permissions", "", "what its routes may ask of callers, e.g. comments:*"),
        key("paths", "", "where its routes may lie; empty: any path that is nobody else's"),
        key("hosts", "", "hosts its routes may name; empty: none"),
        key("from", "", "peers that may register it; empty: allow_registration_from"),
        key("upstreams", "", "networks its urls may point to; empty: the registering peer's own address"),
        key("token_sha256", "", "when set, registering needs Authorization: Bearer TOKEN"),
        key("max_instances", "16", "copies at once, parked ones not counted"),
        key("allow_public", "false", "whether its routes may need no key"),
        key("max_in_flight", "0", "requests at once to each copy, from one data plane; 0 = no limit"),
        key("keep_alive", "true", "whether connections to it serve more than one request"),
    ],
};

const ROUTE: Kind = Kind {
    name: "route",
    labelled: true,
    strict: true,
    keys: &[
        key("host", "", "the host it answers for, or *.suffix; empty: any"),
        key("methods", "", "e.g. GET, POST; * is any"),
        key("path", "", "e.g. /v1/mail/send or /files/*"),
        key("url", "", "where requests go, http:// or https://host:port"),
        key("protocol", "http1", "what is spoken there: http1 or h2"),
        key("permission", "", "what a caller's key needs"),
        key("public", "false", "true instead of a permission: callers need no key"),
        key("set_headers", "", "on the way to the service, e.g. X-API-Key: ${MAIL_KEY}"),
        key("timeout", "", "to the head of the answer; empty: upstream_timeout"),
        key("deadline", "", "to the end of the answer; empty: that of [gateway]"),
        key("max_in_flight", "0", "requests at once; 0 = no limit"),
        key("keep_alive", "true", "whether connections to it serve more than one request"),
    ],
};

const API_KEY: Kind = Kind {
    name: "api_key",
    labelled: true,
    strict: true,
    keys: &[
        key("name", "", "the caller's name; empty: the label"),
        key("key_sha256", "", "SHA-256 of the key in hex; two during rotation; absent: the label is the key"),
        key("permissions", "", "what the caller may do, e.g. comments:read, comments:write"),
        key("allowed_ips", "", "where it may be used from; empty: anywhere"),
        key("rate_limit", "", "e.g. 600/min; empty: none"),
        key("expires", "", "e.g. 2027-01-31T00:00:00Z; empty: never"),
    ],
};

const TOKEN: Kind = Kind {
    name: "token",
    labelled: true,
    strict: true,
    keys: &[
        key("role", "", "registrar, reader, operator or data-plane"),
        key("sha256", "", "SHA-256 of the token in hex; two during rotation"),
    ],
};

const CORS: Kind = Kind {
    name: "cors",
    labelled: false,
    strict: false,
    keys: &[key("allowed_origins", "", "who may read answers from a browser, e.g. https://example.org, or *")],
};

/// The original furt's mail keys in `[api_key]`: old files must load, so they are known and ignored.
pub fn is_mail_key(kind: &Kind, name: &str) -> bool {
    kind.name == "api_key" && (name.starts_with("smtp_") || name.starts_with("mail_"))
}
