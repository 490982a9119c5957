//! The store read at furt's start, and opened anew after a fault, until it works (DESIGN §7).
//!
//! Here: what is restored, what the store is made to hold again, what `/health` says meanwhile. Not here: what is made
//! durable (`committer`), what a restored record becomes (`records`).

use furt_proto::store::v1::InstanceRecord;
use prost::Message;

use super::{committer::key, rules::readmit_all, *};
use crate::store::{Key, Loaded, StoreError};

/// How long until a store that failed is opened anew.
const AGAIN: Duration = Duration::from_millis(500);

impl Registry {
    /// Tries the store again and again.
    pub(super) async fn recover(self) {
        loop {
            tokio::select! {
                () = self.shared.closed.cancelled() => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
            let known = self.lock().changes.loaded;
            let outcome = if known { self.reopen().await } else { self.load().await };
            match outcome {
                Ok(()) => return,
                Err(error) => {
                    let why: Arc<str> = error.to_string().into();
                    let mut state = self.lock();
                    let news = state.changes.outage.as_ref().is_none_or(|(_, last)| *last != why);
                    if news && let Some((_, last)) = &mut state.changes.outage {
                        *last = why.clone();
                        note_issue(&mut state, Some(&why));
                    }
                    self.publish(state);
                }
            }
        }
    }

    /// Opens a store that failed, and makes it hold what is true.
    pub(super) async fn reopen(&self) -> Result<(), StoreError> {
        let records = self.records();
        self.on_store(move |store| store.recover(&records, unix_ms_now())).await?;
        self.recovered(self.lock());
        Ok(())
    }

    fn recovered(&self, mut state: MutexGuard<'_, State>) {
        let since = state.changes.outage.take().map(|(since, _)| since);
        note_issue(&mut state, None);
        self.store_soon(&mut state);
        self.publish(state);
        if let Some(since) = since {
            self.telemetry().store_recovered(since.elapsed());
        }
    }

    /// Every instance as the store should hold it.
    fn records(&self) -> Vec<(Key, Vec<u8>)> {
        let now = Instant::now();
        let foreign = {
            let state = self.lock();
            let known =
                |key: &Key| state.services.get(&key.service).is_some_and(|service| service.instances.contains_key(key.instance.as_str()));
            state.changes.foreign.iter().filter(|(key, _)| !known(key)).cloned().collect::<Vec<_>>()
        };
        let mut records = self.walk(|service, out| {
            out.extend(service.instances.iter().map(|(id, instance)| (key(&service.name, id), instance.record(now).encode_to_vec())));
        });
        records.extend(foreign);
        records
    }

    /// Reads the store at furt's start; to be called before anything is served. When it cannot be read, furt goes on
    /// with what it has, says so, refuses changes and tries again: a store that cannot be read is not an empty one.
    pub async fn restore(&self) -> Result<(), StoreError> {
        let read = self.load().await;
        if let Err(error) = &read {
            let why: Arc<str> = error.to_string().into();
            let mut state = self.lock();
            state.changes.outage = Some((Instant::now(), why.clone()));
            note_issue(&mut state, Some(&why));
            self.publish(state);
            self.telemetry().store_failed(error);
            tokio::spawn(self.clone().recover());
        }
        read
    }

    async fn load(&self) -> Result<(), StoreError> {
        let began = Instant::now();
        let Loaded { records, alive_unix_ms } = self.on_store(|store| store.load()).await?;
        let decoded: Result<Vec<_>, _> = records.iter().map(|(_, value)| InstanceRecord::decode(&value[..])).collect();
        let undecoded = |error: prost::DecodeError| StoreError::Corrupt { file: "the store".into(), cause: error.to_string() };
        let decoded = decoded.map_err(undecoded)?;
        let mut state = self.lock();
        let at = moment();
        let mut foreign = Vec::new();
        for (record, stored) in decoded.iter().zip(records) {
            // One that lies in another's place would be two instances in one.
            let in_place = record
                .registration
                .as_ref()
                .is_some_and(|registration| (&registration.service, &registration.instance) == (&stored.0.service, &stored.0.instance));
            if !in_place || !state.services.restore(record, alive_unix_ms, at) {
                // It stays in the store: the furt that wrote it could read it.
                self.telemetry().not_restored(&stored.0.service, &stored.0.instance);
                foreign.push(stored);
            }
        }
        state.changes.foreign = foreign;
        let verdicts = readmit_all(&self.rules(), &mut state.services);
        state.changes.loaded = true;
        let outage = state.changes.outage.take();
        note_issue(&mut state, None);
        let (services, instances) = (state.services.len(), state.services.instances());
        self.publish(state);
        self.shared.due.notify_one();
        if let Some((since, _)) = outage {
            self.telemetry().store_recovered(since.elapsed());
        }
        self.telemetry().restored(instances, services, began.elapsed());
        verdicts.iter().for_each(|verdict| self.tell_verdict(verdict));
        Ok(())
    }
}

/// Says on `/health` why changes are refused, or no longer does.
pub(super) fn note_issue(state: &mut State, why: Option<&str>) {
    state.issues = why.map(|why| format!("registrations are refused: {why}")).into_iter().collect();
    state.notices += 1;
}
