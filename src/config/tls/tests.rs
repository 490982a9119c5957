//! What every file that is wrong, missing or in the wrong place is told.

use std::{collections::HashMap, io, path::Path, time::Duration};

use rcgen::{CertificateParams, Issuer, KeyPair, date_time_ymd};

use crate::config::{Config, Report, Surroundings, parse};

/// Files by name, as if they lay beside furt.conf.
struct Files(HashMap<&'static str, String>);

impl Files {
    /// Two certificates with keys, an authority, and what is not quite one of these.
    fn new() -> Self {
        let pair = |names: &[&str], change: &dyn Fn(&mut CertificateParams)| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
            change(&mut params);
            (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
        };
        let (a, a_key) = pair(&["a.test"], &|_| {});
        let (b, b_key) = pair(&["b.test", "*.b.test"], &|_| {});
        let (old, old_key) = pair(&["a.test"], &|params| params.not_after = date_time_ymd(2020, 2, 3));
        let (new, new_key) = pair(&["a.test"], &|params| params.not_before = date_time_ymd(2100, 2, 3));
        let (nameless, nameless_key) = pair(&[], &|_| {});
        let encrypted = a_key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let damaged = a.replacen("MII", "MAA", 1);
        let cut = a.rsplit_once("-----END").unwrap().0.to_owned();
        let files = [
            ("a.pem", a),
            ("a.key", a_key),
            ("b.pem", b),
            ("b.key", b_key),
            ("old.pem", old),
            ("old.key", old_key),
            ("new.pem", new),
            ("new.key", new_key),
            ("nameless.pem", nameless),
            ("nameless.key", nameless_key),
            ("encrypted.key", encrypted),
            ("damaged.pem", damaged),
            ("cut.pem", cut),
            ("empty.pem", String::new()),
        ];
        Self(files.into())
    }

    fn read(&self, lines: &str) -> Result<Config, Report> {
        let read_file = |path: &Path| {
            let name = path.strip_prefix("etc").ok().and_then(Path::to_str).unwrap_or_default();
            self.0.get(name).cloned().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "not there"))
        };
        let around = Surroundings {
            environment: &|name| (name == "SECRET").then(|| "s3cret.pem".into()),
            read_file: &read_file,
            open_to_all: &|path| path.ends_with("b.key"),
            system_authorities: &Vec::new,
            now: Duration::from_secs(1_800_000_000),
            descriptors: None,
            cores: 1,
            process_id: 1,
        };
        parse(&format!("[server]\n{lines}\n"), "etc/furt.conf", &around)
    }

    #[track_caller]
    fn bad(&self, lines: &str, expected: &[&str]) {
        let report = self.read(lines).expect_err(lines);
        let told: Vec<_> = report.errors.iter().map(|finding| finding.to_string().replacen("etc/furt.conf:", "", 1)).collect();
        assert_eq!(told, expected, "{lines}");
    }

    #[track_caller]
    fn good(&self, lines: &str, warnings: &[&str]) -> Config {
        let config = self.read(lines).unwrap_or_else(|report| panic!("{lines}: {report}"));
        let told: Vec<_> = config.warnings.iter().map(|finding| finding.to_string().replacen("etc/furt.conf:", "", 1)).collect();
        assert_eq!(told, warnings, "{lines}");
        config
    }
}

#[test]
fn certificates_and_keys_are_paired_and_told_what_is_odd() {
    let files = Files::new();
    let config = files.good("tls_cert = a.pem\ntls_key = a.key", &[]);
    assert_eq!(config.tls.unwrap().names, ["a.test"]);
    assert!(config.data.tls.is_some());
    let both = files.good(
        "tls_cert = a.pem, b.pem\ntls_key = a.key, b.key",
        &["3: tls_key: everyone on this machine can read the private key in \"b.key\" (chmod o-r)"],
    );
    assert_eq!(both.tls.unwrap().names, ["a.test", "b.test", "*.b.test"]);
    files.good(
        "tls_cert = old.pem\ntls_key = old.key",
        &["2: tls_cert: the certificate in \"old.pem\" ended at 2020-02-03T00:00:00Z: clients refuse it"],
    );
    files.good(
        "tls_cert = new.pem\ntls_key = new.key",
        &["2: tls_cert: the certificate in \"new.pem\" begins at 2100-02-03T00:00:00Z: clients refuse it until then"],
    );
    files.good(
        "tls_cert = a.pem, nameless.pem\ntls_key = a.key, nameless.key",
        &["2: tls_cert: no client will be shown the certificate in \"nameless.pem\": it names no host (subjectAltName)"],
    );
    files.good("tls_cert = nameless.pem\ntls_key = nameless.key", &[]);
    files.good("tls_cert = a.pem\ntls_key = a.key\ntls_client_ca = b.pem\ntls_client_auth = optional", &[]);
    files.good("tls_cert =\ntls_key =\ntls_client_ca =\ntls_client_auth =", &[]);
}

#[test]
fn what_does_not_fit_is_told_with_what_to_do() {
    let files = Files::new();
    files.bad("tls_cert = a.pem", &["2: tls_cert: expected tls_key too: the file with the private key of the certificate"]);
    files.bad("tls_key = a.key", &["2: tls_key: expected tls_cert too: the file with the certificate of the key, and its chain"]);
    files.bad(
        "tls_cert = a.pem, b.pem\ntls_key = a.key",
        &["3: tls_key: expected a key for each certificate, in the same order: tls_cert has 2, tls_key 1"],
    );
    files.bad("tls_client_ca = a.pem", &["2: tls_client_ca: expected tls_cert and tls_key too: without TLS no client shows a certificate"]);
    let pair = "tls_cert = a.pem\ntls_key = a.key";
    files.bad(
        &format!("{pair}\ntls_client_auth = optional"),
        &["4: tls_client_auth: expected tls_client_ca too: whom the certificates of clients have to lead to"],
    );
    files.bad(
        &format!("{pair}\ntls_client_ca = b.pem\ntls_client_auth = yes"),
        &["5: tls_client_auth: expected required or optional, got \"yes\""],
    );
    files.bad(
        "tls_cert = c.pem\ntls_key = c.key",
        &["2: tls_cert: expected a readable file at \"c.pem\": not there", "3: tls_key: expected a readable file at \"c.key\": not there"],
    );
    files.bad(
        "tls_cert = a.key\ntls_key = a.pem",
        &[
            "2: tls_cert: expected a certificate in PEM (-----BEGIN CERTIFICATE-----), in \"a.key\"",
            "3: tls_key: expected a private key in PEM (-----BEGIN PRIVATE KEY-----), in \"a.pem\"",
        ],
    );
    let certificate = |name: &str, expected: &str| files.bad(&format!("tls_cert = {name}\ntls_key = a.key"), &[expected]);
    certificate("empty.pem", "2: tls_cert: expected a certificate in PEM (-----BEGIN CERTIFICATE-----), in \"empty.pem\"");
    certificate("cut.pem", "2: tls_cert: expected a certificate in PEM (-----BEGIN CERTIFICATE-----), in \"cut.pem\"");
    certificate(
        "damaged.pem",
        "2: tls_cert: expected a certificate that can be read: it is damaged, or no X.509 version 3, in \"damaged.pem\"",
    );
    let key = |name: &str, expected: &str| files.bad(&format!("tls_cert = a.pem\ntls_key = {name}"), &[expected]);
    key("b.key", "3: tls_key: expected the private key of the first certificate in its file, it is that of another, in \"b.key\"");
    key(
        "encrypted.key",
        "3: tls_key: expected a private key without a passphrase: furt has nobody to ask (openssl pkey -in FILE -out FILE), in \"encrypted.key\"",
    );
    let authority = |name: &str, expected: &str| files.bad(&format!("{pair}\ntls_client_ca = {name}"), &[expected]);
    authority("c.pem", "4: tls_client_ca: expected a readable file at \"c.pem\": not there");
    authority("empty.pem", "4: tls_client_ca: expected a certificate in PEM (-----BEGIN CERTIFICATE-----), in \"empty.pem\"");
    authority(
        "b.pem, damaged.pem",
        "4: tls_client_ca: expected a certificate that can be read: it is damaged, or no X.509 version 3, in \"damaged.pem\"",
    );
    let upstream = |name: &str, expected: &str| files.bad(&format!("[gateway]\nupstream_ca = {name}"), &[expected]);
    upstream("c.pem, system", "3: upstream_ca: expected a readable file at \"c.pem\": not there");
    upstream("empty.pem", "3: upstream_ca: expected a certificate in PEM (-----BEGIN CERTIFICATE-----), in \"empty.pem\"");
}

#[test]
fn paths_from_the_environment_are_not_told() {
    Files::new()
        .bad("tls_cert = ${SECRET}\ntls_key = a.key", &["2: tls_cert: expected a readable file at the file named there: not there"]);
}

#[test]
fn only_other_certificates_are_another_listener() {
    let files = Files::new();
    let listener = |lines: &str| files.good(lines, &[]).tls.unwrap();
    let first = listener("tls_cert = a.pem\ntls_key = a.key");
    assert!(first.is_as(&listener("tls_cert = a.pem\ntls_key = a.key")));
    let clients = "tls_cert = a.pem\ntls_key = a.key\ntls_client_ca = b.pem";
    assert!(!first.is_as(&listener(clients)));
    assert!(!listener(clients).is_as(&listener(&format!("{clients}\ntls_client_auth = optional"))));
    let twice = "tls_cert = a.pem, nameless.pem\ntls_key = a.key, nameless.key";
    assert!(!first.is_as(&files.read(twice).unwrap().tls.unwrap()));
}

#[test]
fn an_https_route_that_nothing_can_answer_is_told() {
    let files = Files::new();
    let route = "[route \"r\"]\nmethods = GET\npath = /a\npublic = true\nurl = https://h\n";
    let nobody = "2: url: no certificate leads to anyone trusted: name its authority in [gateway] upstream_ca (the system trusts nobody)";
    files.good(route, &[nobody]);
    files.good(&format!("{route}[gateway]\nupstream_ca =\n"), &[nobody]);
    let (one, other) = (files.good("[gateway]\nupstream_ca = a.pem", &[]), files.good("[gateway]\nupstream_ca = b.pem", &[]));
    assert!(one.authorities != other.authorities);
    files.good(&format!("{route}[gateway]\nupstream_ca = a.pem, system\n"), &[]);
}

/// A chain, as the public authorities hand it out, and the key of the one in front.
#[test]
fn the_certificate_in_front_of_its_chain_is_the_one_that_counts() {
    let mut files = Files::new();
    let (above, own) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut params = CertificateParams::new(vec!["ca.test".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&above).unwrap().pem();
    let leaf = CertificateParams::new(vec!["Shop.Test".to_owned()]).unwrap().signed_by(&own, &Issuer::new(params, above)).unwrap().pem();
    files.0.extend([("chain.pem", format!("# Shop\n{leaf}{authority}")), ("own.key", own.serialize_pem())]);
    assert_eq!(files.good("tls_cert = chain.pem\ntls_key = own.key", &[]).tls.unwrap().names, ["shop.test"]);
    files.0.insert("wrong.pem", format!("{authority}{leaf}"));
    files.bad(
        "tls_cert = wrong.pem\ntls_key = own.key",
        &["3: tls_key: expected the private key of the first certificate in its file, it is that of another, in \"own.key\""],
    );
}
