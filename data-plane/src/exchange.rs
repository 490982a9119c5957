//! One request from its head to the end of its answer: what is counted and logged about it, and
//! what has to be undone when it ends, however it ends.

use std::{net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use http::{HeaderValue, Method, StatusCode};

use crate::{
    access_log::Line,
    balance::Entered,
    connection::Connection,
    table::Route,
    view::Instance,
    watch::Watch,
    worker::{Held, Worker},
};

/// The record of a request under way. Dropping it counts and logs the request.
pub struct Exchange {
    worker: Rc<Worker>,
    watch: Rc<Watch>,
    /// Over HTTP/2, that of the connection.
    shared: Option<Rc<Watch>>,
    view: Rc<Held>,
    method: Method,
    client: IpAddr,
    started: u64,
    request_id: HeaderValue,
    status: StatusCode,
    reason: &'static str,
    /// The route and its service's slot, once matched.
    route: Option<Arc<Route>>,
    instance: Option<Arc<Instance>>,
    upstream: Option<Duration>,
    bytes: u64,
    complete: bool,
    /// Only with `log_requests`: the path and the caller's name.
    logged: Option<(String, Option<Arc<str>>)>,
}

impl Exchange {
    /// Begins with the head of a request.
    pub fn new(connection: &Connection, watch: Rc<Watch>, view: &Rc<Held>, method: Method, client: IpAddr, started: u64) -> Self {
        Self {
            worker: connection.worker.clone(),
            shared: (!Rc::ptr_eq(&watch, &connection.watch)).then(|| connection.watch.clone()),
            watch,
            view: view.clone(),
            method,
            client,
            started,
            request_id: HeaderValue::from_static(""),
            status: StatusCode::INTERNAL_SERVER_ERROR,
            reason: "",
            route: None,
            instance: None,
            upstream: None,
            bytes: 0,
            complete: false,
            logged: None,
        }
    }

    /// The client's address, when a proxy told it.
    pub fn note_client(&mut self, client: IpAddr) {
        self.client = client;
    }

    /// The id it is known by.
    pub fn note_id(&mut self, request_id: HeaderValue) {
        self.request_id = request_id;
    }

    /// Its place in the look-over.
    pub fn watch(&self) -> &Rc<Watch> {
        &self.watch
    }

    /// The view it sees.
    pub fn view(&self) -> &Rc<Held> {
        &self.view
    }

    /// Whether a piece of the answer waits for the caller to take it.
    pub fn owes(&self, piece: bool) {
        self.watch.owes(piece.then(|| self.worker.coarse.now()));
    }

    fn end(&self) {
        let now = self.worker.coarse.now();
        self.watch.end(now);
        if let Some(shared) = &self.shared {
            shared.end(now);
        }
    }

    /// The worker that serves it.
    pub fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    /// The client's address.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// When the head arrived.
    pub fn started(&self) -> u64 {
        self.started
    }

    /// What the log will say of path and caller, when there is to be a line.
    pub fn note_path(&mut self, path: &str) {
        if self.view.config.log_requests {
            self.logged = Some((path.to_owned(), None));
        }
    }

    /// The caller, once known.
    pub fn note_caller(&mut self, name: &Arc<str>) {
        if let Some((_, caller)) = &mut self.logged {
            *caller = Some(name.clone());
        }
    }

    /// The route that governs it.
    pub fn note_route(&mut self, route: &Arc<Route>) {
        self.route = Some(route.clone());
    }

    /// Another instance is asked. The exchange counts there unless it is full, also when it has been drained since the
    /// request's view.
    pub fn ask(&mut self, instance: &Arc<Instance>) -> Entered {
        self.leave();
        let entered = instance.state.enter(instance.max_in_flight);
        self.instance = (entered != Entered::Full).then(|| instance.clone());
        entered
    }

    fn leave(&mut self) {
        if let Some(instance) = &self.instance {
            instance.state.leave();
        }
    }

    /// The head of the answer: its status, and how long the service took, when it was asked.
    pub fn answered(&mut self, status: StatusCode, reason: &'static str, upstream: Option<Duration>) {
        self.status = status;
        self.reason = reason;
        self.upstream = upstream;
    }

    /// Bytes of the answer's body went to the caller.
    pub fn sent(&mut self, length: usize) {
        self.bytes += length as u64;
    }

    /// The answer came to its end.
    pub fn complete(&mut self) {
        if !self.complete {
            self.complete = true;
            self.end();
        }
    }

    /// The answer broke off.
    pub fn broke_off(&mut self, reason: &'static str) {
        self.reason = reason;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.leave();
        if !self.complete {
            self.end();
            if self.reason.is_empty() {
                self.reason = "client-gone";
            }
        }
        let now = self.worker.coarse.exact();
        let total = Duration::from_nanos(now.saturating_sub(self.started));
        let service = self.route.as_ref().and_then(|route| self.view.service(route.slot));
        let metrics = service.map_or(&self.worker.shared.unrouted, |service| &service.metrics);
        metrics.observe(self.worker.number, &self.method, self.status, total, self.upstream);
        let Some((path, caller)) = &self.logged else { return };
        let line = Line {
            unix_ms: self.worker.coarse.unix_ms(self.started),
            request_id: self.request_id.to_str().unwrap_or_default(),
            client: self.client,
            caller: caller.as_deref().unwrap_or_default(),
            method: self.method.as_str(),
            path,
            route: self.route.as_ref().map_or("", |route| route.pattern.as_str()),
            service: service.map_or("", |service| &service.name),
            instance: self.instance.as_ref().map_or("", |instance| &*instance.id),
            status: self.status.as_u16(),
            duration: total,
            upstream: self.upstream,
            bytes: self.bytes,
            reason: self.reason,
        };
        self.worker.write_log(&line, self.view.config.log_json);
    }
}
