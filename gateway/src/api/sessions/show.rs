//! `GET /api/sessions/{sessionId}`.

use billing::{Principal, Session, SessionId};
use http::Method;
use tracing::warn;

use crate::refusal::Refusal;

use super::super::operation::{Call, Operation};
use super::super::{body, parameters};
use super::view::View;

pub(in crate::api) struct Show;

impl Operation for Show {
    const METHOD: Method = Method::GET;
    const PATH: &'static str = "/api/sessions/{sessionId}";
    const NAME: &'static str = "showSession";
    const SUMMARY: &'static str = "One session, as it stands or as it ended.";
    type Parameters = parameters::None;
    type Body = body::None;
    type Answer = View;

    fn refusals() -> Vec<Refusal> {
        vec![Refusal::NoSession]
    }

    async fn answer(
        call: &Call<'_>,
        who: &Principal,
        _: parameters::None,
        _: body::None,
    ) -> Result<View, Refusal> {
        let session = record(call, who, &call.session_id()?).await?;
        Ok(View::of(session, call.gateway))
    }
}

/// The caller's own session of that id.
pub(super) async fn record(call: &Call<'_>, who: &Principal, id: &SessionId) -> Result<Session, Refusal> {
    let session = call.gateway.billing.session(&who.account, id).await.map_err(|error| {
        warn!(%error, "a session could not be read");
        Refusal::LedgerAway
    })?;
    session.ok_or(Refusal::NoSession)
}
