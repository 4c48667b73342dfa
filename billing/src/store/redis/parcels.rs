//! Events as they are given to the consumers of groups, parcels, and webhooks.
//!
//! Each partition's stream has a consumer group of each of ours. Parcels of all accounts are in one slot of their own, so
//! they are kept before their events are noted as done: whoever dies in between leaves events that are given to another, who
//! makes the same parcels once more, under the same names.

use std::time::Duration;

use futures_util::future::try_join_all;
use redis::{Value, cmd};

use super::{Redis, Space, array, body, broken, connection, heard, stream, surprise, text, texts};
use crate::consumer::{Batch, DROPPED_AT_A_TIME, READ};
use crate::delivery::{AT_A_TIME, Backlog, Buried, Claim, Group, LINE_MAX, Packed, Ticket, line_of};
use crate::event::legible;
use crate::id::{AccountId, GatewayId, WebhookId};
use crate::store::lanes::LinkError;
use crate::time::Timestamp;
use crate::webhook::Webhook;

const PARCELS: &str = include_str!("parcels.lua");
const TRIM: &str = include_str!("trim.lua");

/// The keys that `parcels.lua` works on, and what a line's begins with.
const KEYS: [&str; 5] = [
    "ufb:{parcels}:lines",
    "ufb:{parcels}:bodies",
    "ufb:{parcels}:attempts",
    "ufb:{parcels}:causes",
    "ufb:{parcels}:dead",
];
const LINE: &str = "ufb:{parcels}:line:";

/// After that long without a sign of it a consumer that has nothing to do is forgotten; it may come back.
const CONSUMER_KEPT: Duration = Duration::from_secs(3_600);

/// Parcels that one script keeps: others' questions wait for it meanwhile, for about a millisecond.
const PUT_AT_A_TIME: usize = 256;

/// Events that are dropped from a stream at a time.
const TRIMMED: u32 = 100_000;

impl Redis {
    pub(in crate::store) async fn read_events(
        &self,
        group: Group,
        consumer: &GatewayId,
        streams: &[u8],
    ) -> Result<Batch, LinkError> {
        match self.try_read(group, consumer, streams).await {
            // The first time, or on a server that has lost everything.
            Err(LinkError::Broken(error)) if connection::lacks_group(&*error) => {
                self.make_groups(group, "0").await?;
                self.try_read(group, consumer, streams).await
            }
            read => read,
        }
    }

    /// A Cluster has each partition in a slot of its own, so that each is asked by itself. Else one question names them all.
    async fn try_read(&self, group: Group, consumer: &GatewayId, streams: &[u8]) -> Result<Batch, LinkError> {
        let at_once = if self.connections.is_cluster() { 1 } else { streams.len().max(1) };
        let questions = streams.chunks(at_once).map(async |streams| {
            let mut read = cmd("XREADGROUP");
            read.arg("GROUP").arg(group.as_str()).arg(consumer.as_str());
            read.arg("COUNT").arg(READ).arg("STREAMS").arg(keys(streams)).arg(vec![">"; streams.len()]);
            self.ask(&read).await
        });
        let mut batch = Batch::default();
        for answer in try_join_all(questions).await? {
            let Value::Array(streams) = answer else { continue };
            for stream in streams {
                let mut stream = array(stream)?.into_iter();
                let key = text(stream.next().unwrap_or(Value::Nil))?.ok_or_else(surprise)?;
                let partition = Space::of_key(&key).ok_or_else(surprise)?.partition;
                let read = add(&mut batch, group, partition, stream.next().unwrap_or(Value::Nil))?;
                if read >= READ as usize {
                    batch.more.push(partition);
                }
            }
        }
        Ok(batch)
    }

    /// From that place on. A group that is there stays as it is.
    async fn make_groups(&self, group: Group, from: &str) -> Result<(), LinkError> {
        let made = Space::all().map(async |space| {
            let key = space.key("events");
            let make =
                cmd("XGROUP").arg("CREATE").arg(key).arg(group.as_str()).arg(&[from, "MKSTREAM"]).take();
            match self.ask(&make).await {
                Err(LinkError::Broken(error)) if connection::has_group(&*error) => Ok(()),
                answered => answered.map(|_| ()),
            }
        });
        try_join_all(made).await.map(|_| ())
    }

    /// Of a store that nobody has read from yet.
    pub(in crate::store) async fn skip_events(&self, group: Group) -> Result<(), LinkError> {
        self.make_groups(group, "$").await
    }

    pub(in crate::store) async fn waiting_parcels(&self) -> Result<Vec<Packed>, LinkError> {
        let fields = array(self.parcels("waiting", Vec::new()).await?)?;
        let parcel = |[name, line, due, body]: &[Value; 4]| {
            let due = Timestamp::from_millis(number(due.clone())?);
            Ok(Packed { name: given(name)?, line: given(line)?, due, body: bytes(body)? })
        };
        fields.as_chunks().0.iter().map(parcel).collect()
    }

    pub(in crate::store) async fn forgotten_events(
        &self,
        group: Group,
        consumer: &GatewayId,
        since: Duration,
    ) -> Result<Batch, LinkError> {
        let idle = since.as_millis().to_string();
        let questions = Space::all().map(async |space| {
            let mut claim = cmd("XAUTOCLAIM");
            claim.arg(space.key("events")).arg(group.as_str()).arg(consumer.as_str());
            claim.arg(&idle).arg("0").arg("COUNT").arg(READ);
            Ok((space.partition, self.ask(&claim).await?))
        });
        let mut batch = Batch::default();
        for (partition, answer) in try_join_all(questions).await? {
            // The place to go on from, the events, and what was trimmed meanwhile.
            let events = array(answer)?.into_iter().nth(1).unwrap_or(Value::Nil);
            add(&mut batch, group, partition, events)?;
        }
        Ok(batch)
    }

    pub(in crate::store) async fn sorted(
        &self,
        group: Group,
        batch: &Batch,
        parcels: &[Packed],
    ) -> Result<Option<u64>, LinkError> {
        let dropped = self.put_parcels(parcels).await?;
        let places = batch.places.chunk_by(|one, other| one.0 == other.0);
        let acknowledged = places.map(async |places| {
            let (partition, _) = places[0];
            let mut acknowledge = cmd("XACK");
            acknowledge.arg(Space { partition }.key("events")).arg(group.as_str());
            places.iter().for_each(|(_, id)| {
                acknowledge.arg(id);
            });
            self.ask(&acknowledge).await
        });
        try_join_all(acknowledged).await?;
        Ok(Some(dropped))
    }

    pub(in crate::store) async fn put_parcels(&self, parcels: &[Packed]) -> Result<u64, LinkError> {
        let mut dropped = 0;
        for parcels in parcels.chunks(PUT_AT_A_TIME) {
            let mut arguments = vec![LINE_MAX.to_string()];
            for Packed { name, line, due, body } in parcels {
                arguments.extend([name.clone(), line.clone(), due.as_millis().to_string(), body.clone()]);
            }
            dropped += number::<u64>(self.parcels("put", arguments).await?)?;
        }
        Ok(dropped)
    }

    pub(in crate::store) async fn trim_events(
        &self,
        stream: u16,
        oldest: Timestamp,
    ) -> Result<(), LinkError> {
        let Ok(partition) = u8::try_from(stream) else { return Ok(()) };
        let mut trim = cmd("EVAL");
        trim.arg(TRIM).arg(1).arg(Space { partition }.key("events"));
        trim.arg(format!("{}-0", oldest.as_millis())).arg(Group::ALL.len());
        trim.arg(CONSUMER_KEPT.as_millis().to_string()).arg(TRIMMED);
        self.ask(&trim).await.map(|_| ())
    }

    pub(in crate::store) async fn claim_parcels(
        &self,
        claim: &Claim<'_>,
    ) -> Result<Vec<(Ticket, String)>, LinkError> {
        let Claim { busy, room, now, until } = claim;
        let mut arguments = vec![now.as_millis().to_string(), until.as_millis().to_string()];
        arguments.extend([room.to_string(), AT_A_TIME.to_string()]);
        arguments.extend(busy.iter().flat_map(|(line, busy)| [line.clone(), busy.to_string()]));
        let fields = array(self.parcels("claim", arguments).await?)?;
        let parcel = |[name, line, attempts, body]: &[Value; 4]| {
            let attempts = number(attempts.clone())?;
            Ok((Ticket { name: given(name)?, line: given(line)?, attempts }, bytes(body)?))
        };
        fields.as_chunks().0.iter().map(parcel).collect()
    }

    pub(in crate::store) async fn remove_parcel(&self, ticket: &Ticket) -> Result<(), LinkError> {
        self.parcels("remove", vec![ticket.name.clone(), ticket.line.clone()]).await.map(|_| ())
    }

    pub(in crate::store) async fn postpone_parcel(
        &self,
        ticket: &Ticket,
        cause: &str,
        due: Timestamp,
    ) -> Result<(), LinkError> {
        self.parcels("postpone", ended(ticket, cause, due)).await.map(|_| ())
    }

    pub(in crate::store) async fn bury_parcel(
        &self,
        ticket: &Ticket,
        cause: &str,
        now: Timestamp,
    ) -> Result<(), LinkError> {
        self.parcels("bury", ended(ticket, cause, now)).await.map(|_| ())
    }

    pub(in crate::store) async fn revive_parcel(
        &self,
        name: &str,
        now: Timestamp,
    ) -> Result<bool, LinkError> {
        let found = self.ask(cmd("HGET").arg(KEYS[1]).arg(name)).await?;
        if found == Value::Nil {
            return Ok(false);
        }
        let arguments = vec![name.to_owned(), line_of(&bytes(&found)?), now.as_millis().to_string()];
        Ok(number::<u8>(self.parcels("revive", arguments).await?)? == 1)
    }

    pub(in crate::store) async fn dead_letters(&self, limit: u32) -> Result<Vec<Buried>, LinkError> {
        let fields = array(self.parcels("dead", vec![limit.to_string()]).await?)?;
        let letter = |[name, body, attempts, cause, died]: &[Value; 5]| {
            let (attempts, died_at) =
                (number(attempts.clone())?, Timestamp::from_millis(number(died.clone())?));
            Ok(Buried { name: given(name)?, body: bytes(body)?, attempts, cause: given(cause)?, died_at })
        };
        fields.as_chunks().0.iter().map(letter).collect()
    }

    pub(in crate::store) async fn drop_dead_letters(
        &self,
        before: Timestamp,
        most: u32,
    ) -> Result<(), LinkError> {
        let numbers = [before.as_millis(), DROPPED_AT_A_TIME.into(), most.into()];
        let arguments = numbers.map(|number| number.to_string()).into();
        self.parcels("drop", arguments).await.map(|_| ())
    }

    pub(in crate::store) async fn backlog(&self) -> Result<Backlog, LinkError> {
        match &array(self.parcels("count", Vec::new()).await?)?[..] {
            [Value::Int(all), Value::Int(dead)] => {
                let (all, dead) = (all.cast_unsigned(), dead.cast_unsigned());
                Ok(Backlog { waiting: all.saturating_sub(dead), dead })
            }
            _ => Err(surprise()),
        }
    }

    async fn parcels(&self, what: &str, arguments: Vec<String>) -> Result<Value, LinkError> {
        let mut call = cmd("EVAL");
        call.arg(PARCELS).arg(KEYS.len()).arg(&KEYS).arg(what).arg(LINE).arg(arguments);
        self.ask(&call).await
    }

    pub(in crate::store) async fn webhooks(
        &self,
        accounts: &[AccountId],
    ) -> Result<Vec<(AccountId, Webhook)>, LinkError> {
        let found = accounts.iter().map(async |account| {
            let bodies = texts(self.ask(cmd("HVALS").arg(webhooks_of(account))).await?)?;
            let webhooks = bodies.iter().map(|body| serde_json::from_str(body).map_err(broken));
            let mut webhooks = webhooks.collect::<Result<Vec<Webhook>, LinkError>>()?;
            webhooks
                .sort_unstable_by(|one, other| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)));
            Ok(webhooks.into_iter().map(|webhook| (account.clone(), webhook)).collect::<Vec<_>>())
        });
        let found: Vec<_> = try_join_all(found).await?;
        Ok(found.into_iter().flatten().collect())
    }

    pub(in crate::store) async fn put_webhook(
        &self,
        account: &AccountId,
        webhook: &Webhook,
    ) -> Result<(), LinkError> {
        let put = cmd("HSET").arg(webhooks_of(account)).arg(webhook.id.as_str()).arg(body(webhook)?).take();
        self.ask(&put).await.map(|_| ())
    }

    pub(in crate::store) async fn remove_webhook(
        &self,
        account: &AccountId,
        id: &WebhookId,
    ) -> Result<bool, LinkError> {
        let removed = self.ask(cmd("HDEL").arg(webhooks_of(account)).arg(id.as_str())).await?;
        Ok(number::<u8>(removed)? == 1)
    }
}

fn webhooks_of(account: &AccountId) -> String {
    Space::of_account(account).of("webhooks", account.as_str())
}

fn keys(streams: &[u8]) -> Vec<String> {
    streams.iter().map(|partition| Space { partition: *partition }.key("events")).collect()
}

/// Adds the entries of a stream to what was read; how many they are.
fn add(batch: &mut Batch, group: Group, partition: u8, entries: Value) -> Result<usize, LinkError> {
    if entries == Value::Nil {
        return Ok(0);
    }
    let entries = stream(entries, heard)?;
    let read = entries.len();
    for (id, heard) in entries {
        batch.add(group, format!("{partition}.{id}"), heard);
        batch.places.push((partition, id));
    }
    Ok(read)
}

fn given(value: &Value) -> Result<String, LinkError> {
    text(value.clone())?.ok_or_else(surprise)
}

/// Whatever bytes it has.
fn bytes(value: &Value) -> Result<String, LinkError> {
    match value {
        Value::BulkString(body) => Ok(legible(body)),
        _ => Err(surprise()),
    }
}

fn ended(ticket: &Ticket, cause: &str, at: Timestamp) -> Vec<String> {
    let Ticket { name, line, attempts } = ticket;
    let [attempts, at] = [attempts.to_string(), at.as_millis().to_string()];
    vec![name.clone(), line.clone(), attempts, cause.to_owned(), at]
}

/// Written as an integer or as digits.
fn number<T: TryFrom<i64> + std::str::FromStr>(value: Value) -> Result<T, LinkError> {
    match value {
        Value::Int(number) => T::try_from(number).map_err(|_| surprise()),
        value => text(value)?.and_then(|digits| digits.parse().ok()).ok_or_else(surprise),
    }
}
