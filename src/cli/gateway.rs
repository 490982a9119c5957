//! The running furt that a command asks: where it is, who says so, with which token, and what to do when
//! it does not answer.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use furt::config::{self, SEARCHED};
use http::{HeaderMap, HeaderValue, Response, header};
use hyper::body::Incoming;

use super::{
    Failure,
    client::{self, Answer, AskError, Question},
};

/// The variable with the bearer token for a listener that asks for one.
pub const TOKEN: &str = "FURT_TOKEN";

/// Whom to ask.
pub struct Gateway {
    /// HOST:PORT of the internal listener.
    pub address: String,
    told_by: ToldBy,
    headers: HeaderMap,
}

/// Where the address is from.
enum ToldBy {
    /// `--gateway`.
    Option,
    /// furt.conf.
    File(PathBuf),
    /// A furt.conf that cannot be read, so that the default is asked.
    Unreadable(PathBuf, io::Error),
    /// There is no furt.conf, so the default is asked.
    Nobody,
}

impl Gateway {
    /// The one that `--gateway` names, else that of furt.conf, else the default.
    pub fn find(config: Option<&Path>, named: Option<&str>) -> Result<Self, Failure> {
        let headers = bearer()?;
        if let Some(address) = named {
            return Ok(Self { address: address.to_owned(), told_by: ToldBy::Option, headers });
        }
        let told_by = match config::find(config) {
            None => ToldBy::Nobody,
            Some(file) => match File::open(&file) {
                Ok(_) => ToldBy::File(file),
                Err(error) if config.is_none() => ToldBy::Unreadable(file, error),
                Err(error) => return Err(Failure::new(format!("furt: cannot read {}: {error}", file.display()))),
            },
        };
        Ok(Self { address: config::gateway_address(config).to_string(), told_by, headers })
    }

    /// Asks, and reads the whole answer.
    pub async fn send(&self, mut question: Question) -> Result<Answer, Failure> {
        question.headers.extend(self.headers.clone());
        client::send(&self.address, question).await.map_err(|error| self.silent(&error))
    }

    /// Asks, and leaves the body of the answer to be read.
    pub async fn open(&self, mut question: Question) -> Result<Response<Incoming>, Failure> {
        question.headers.extend(self.headers.clone());
        client::open(&self.address, question).await.map_err(|error| self.silent(&error))
    }

    /// No answer, and the next step.
    fn silent(&self, error: &AskError) -> Failure {
        let next = match error {
            AskError::Unreachable(..) => format!("\n{}", self.next_step()),
            AskError::Broken(..) => "\nIs it the internal listener of furt? --gateway names another address".into(),
            AskError::Slow(_) | AskError::Unsendable(_) => String::new(),
        };
        Failure::new(format!("furt: {error}{next}"))
    }

    /// For an address where nobody listens.
    fn next_step(&self) -> String {
        match &self.told_by {
            ToldBy::Option => "--gateway names this address; is `furt run` running there?".into(),
            ToldBy::File(file) if disabled(file) => {
                format!("{} has [gateway] enabled = false: a furt that runs with it cannot be asked", file.display())
            }
            ToldBy::File(file) => format!(
                "it is [gateway] listen of {}; is `furt run` running with that file? --gateway names another address",
                file.display()
            ),
            ToldBy::Unreadable(file, error) => {
                format!("it is the default, since {} cannot be read ({error}); --gateway names another address", file.display())
            }
            ToldBy::Nobody => format!(
                "it is the default, since there is no ./{} and no {}; is `furt run` running? --gateway names another address",
                SEARCHED[0], SEARCHED[1]
            ),
        }
    }
}

fn disabled(file: &Path) -> bool {
    config::load(Some(file)).is_ok_and(|config| !config.enabled)
}

fn bearer() -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    if let Some(token) = std::env::var_os(TOKEN).filter(|token| !token.is_empty()) {
        let unfit = || Failure::new(format!("furt: {TOKEN} must be visible ASCII"));
        // A file of one line has a line's end.
        let token = token.to_str().map(str::trim).filter(|token| !token.is_empty()).ok_or_else(unfit)?;
        let mut value = HeaderValue::from_maybe_shared(Bytes::from(format!("Bearer {token}"))).map_err(|_| unfit())?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(told_by: ToldBy) -> String {
        let gateway = Gateway { address: "127.0.0.1:7810".into(), told_by, headers: HeaderMap::new() };
        let error = AskError::Unreachable(gateway.address.clone(), io::ErrorKind::ConnectionRefused.into());
        gateway.silent(&error).to_string()
    }

    #[test]
    fn when_nobody_answers_the_address_and_who_told_it_are_said() {
        let check = |told_by, words: &[&str]| {
            let said = said(told_by);
            for word in ["furt: cannot reach furt at 127.0.0.1:7810: connection refused\n", "--gateway"].iter().chain(words) {
                assert!(said.contains(word), "{word:?} is not in {said}");
            }
        };
        check(ToldBy::Option, &["`furt run`"]);
        check(ToldBy::File("etc/furt.conf".into()), &["[gateway] listen of etc/furt.conf", "`furt run`"]);
        check(
            ToldBy::Unreadable("/etc/furt/furt.conf".into(), io::ErrorKind::PermissionDenied.into()),
            &["/etc/furt/furt.conf", "permission denied"],
        );
        check(ToldBy::Nobody, &["no ./furt.conf and no /etc/furt/furt.conf", "`furt run`"]);
    }

    #[test]
    fn a_named_furt_conf_must_be_there() {
        let gone = Gateway::find(Some(Path::new("/nowhere/furt.conf")), None).err().map(|failure| failure.to_string());
        assert!(gone.is_some_and(|said| said.starts_with("furt: cannot read /nowhere/furt.conf: ")));
        assert!(Gateway::find(Some(Path::new("/nowhere/furt.conf")), Some("h:1")).is_ok(), "--gateway needs no furt.conf");
    }
}
