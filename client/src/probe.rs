//! What a probe of furt's tells the service (DESIGN §7).

use http::HeaderMap;

/// Whether to register again, for services that renew instead of holding a session.
///
/// `probe`: the headers of a request to the health endpoint. `epoch`: that of the last answer to a registration;
/// empty before the first. A request that is no probe of furt's says nothing.
pub fn must_register(probe: &HeaderMap, epoch: &str) -> bool {
    let Some(theirs) = probe.get("x-furt-epoch") else { return false };
    theirs.as_bytes() != epoch.as_bytes() || probe.get("x-furt-registered").is_some_and(|registered| registered.as_bytes() == b"false")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_epoch_or_a_registration_that_was_not_renewed_means_to_register() {
        let check = |headers: &[(&'static str, &str)], expected: bool| {
            let probe = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            assert_eq!(must_register(&probe, "3f9c"), expected, "{headers:?}");
        };
        check(&[("x-furt-epoch", "3f9c"), ("x-furt-registered", "true")], false);
        check(&[("x-furt-epoch", "3f9c"), ("x-furt-registered", "false")], true);
        check(&[("x-furt-epoch", "77aa"), ("x-furt-registered", "true")], true);
        check(&[("x-furt-epoch", "3f9c")], false);
        check(&[("x-furt-epoch", "")], true);
        // A person with curl, or another checker.
        check(&[], false);
        check(&[("x-furt-registered", "false")], false);
    }
}
