//! Which certificate is shown for which name.

use rcgen::KeyPair;
use rustls::pki_types::PrivateKeyDer;

use super::*;

fn identity(names: &[&str]) -> Identity {
    let key = KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Identity::new(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap()).unwrap()
}

#[test]
fn a_name_stands_before_a_wildcard_and_the_first_certificate_for_all_else() {
    let sets: [&[&str]; 4] = [&["a.test"], &["*.b.test", "b.test"], &["x.b.test"], &["a.test", "c.test"]];
    let identities = sets.map(identity);
    let shown = ByName::new(&identities).unwrap();
    let check = |name: Option<&str>, expected: &[usize]| {
        let place = |key: &Arc<CertifiedKey>| identities.iter().position(|identity| Arc::ptr_eq(&identity.key, key)).unwrap();
        assert_eq!(shown.of(name).iter().map(place).collect::<Vec<_>>(), expected, "{name:?}");
    };
    check(Some("a.test"), &[0, 3]);
    check(Some("c.test"), &[3]);
    check(Some("b.test"), &[1]);
    check(Some("y.b.test"), &[1]);
    check(Some("x.b.test"), &[2]);
    // A wildcard is one label.
    check(Some("z.y.b.test"), &[0]);
    check(Some("y.a.test"), &[0]);
    check(Some("test"), &[0]);
    check(None, &[0]);
    assert!(ByName::new(&[]).is_none());
}

#[test]
fn certificates_for_the_same_names_stand_in_for_each_other() {
    let identities = [identity(&["a.test"]), identity(&["b.test"]), identity(&["a.test"])];
    let shown = ByName::new(&identities).unwrap();
    assert_eq!(shown.of(None).len(), 2);
    assert_eq!(shown.of(Some("a.test")).len(), 2);
    assert_eq!(shown.of(Some("b.test")).len(), 1);
}

#[test]
fn the_listener_offers_both_protocols_and_tickets_and_takes_no_early_data() {
    let one = Listener::new(&[identity(&["a.test"])], None).unwrap();
    assert_eq!(one.config.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert!(one.config.ignore_client_order && one.config.ticketer.enabled() && one.config.max_early_data_size == 0);
    assert!(Listener::new(&[], None).is_err());
}
