# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, and what to do about it.

    AgentIdentityError                     .code (stable, also the span's error.type)  .remedy  .retryable
    ├─ ConfigurationError
    ├─ NoSessionError
    ├─ DeniedError                         the tool did not run; .policy_id
    │   ├─ ApprovalRequiredError           .pending
    │   └─ RevokedError
    ├─ CredentialError
    │   ├─ CredentialUnavailableError      retrying may help
    │   └─ CredentialRejectedError         it will not
    ├─ VerificationError                   .code says which rule
    │   ├─ InvalidSubjectError             the principal's token
    │   └─ InvalidAssertionError           a chain or an assertion
    ├─ LedgerError
    └─ TransportError                      the network

A message says what happened to whom and holds no secret. `.remedy` says what to do; a traceback shows it as a note. Programs
branch on the class and on `.code`, never on the text.
"""

from __future__ import annotations

import functools
import signal
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "CODES",
    "AgentIdentityError",
    "ApprovalRequiredError",
    "ConfigurationError",
    "CredentialError",
    "CredentialRejectedError",
    "CredentialUnavailableError",
    "DeniedError",
    "InvalidAssertionError",
    "InvalidSubjectError",
    "LedgerError",
    "NoSessionError",
    "RevokedError",
    "TransportError",
    "VerificationError",
    "is_interrupt",
]


class AgentIdentityError(Exception):
    """The base of every error that the library raises on purpose.

    `code` is stable across releases, `remedy` says what to do, `retryable` whether the same call may succeed later,
    `call_id` which tool call it ended (None outside one).
    """

    __slots__ = (
        "_detail",
    )  # so that it is in no pickle, and in no report that prints an error's variables

    retryable: ClassVar[bool] = False

    def __init__(self, code: str, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.remedy = remedy
        self.call_id: str | None = None
        if remedy is not None:
            self.add_note(f"what to do: {remedy}")

    @property
    def detail(self) -> str | None:
        """The issuer's own words about it, for a person who sets the client up; None where it sent none.

        They are cleaned: at most 200 characters, no control characters, no known secret and nothing that looks like a token. No
        message, record or span contains them.
        """
        return getattr(self, "_detail", None)

    @detail.setter
    def detail(self, words: str | None) -> None:
        self._detail = words

    def copy(self) -> Self:
        """A copy to raise elsewhere: callers can share one failure, but not its traceback and `call_id`."""
        copy = _rebuild(type(self), self.args, dict(self.__dict__))
        copy.detail = self.detail
        if hasattr(copy, "__notes__"):
            copy.__notes__ = [*copy.__notes__]
        if isinstance(self.__cause__, AgentIdentityError):
            copy.__cause__ = self.__cause__.copy()
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


E = TypeVar("E", bound=AgentIdentityError)


def _rebuild(kind: type[E], args: tuple[object, ...], state: dict[str, object]) -> E:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(AgentIdentityError):
    """The library was set up or called in a way that can't work."""


class NoSessionError(AgentIdentityError):
    """A tool was called outside every on-behalf-of session, so it did not run."""


class DeniedError(AgentIdentityError):
    """The call was refused before the tool ran. `policy_id` names the policy rule that refused it, if one did."""

    def __init__(
        self, code: str, message: str, *, remedy: str | None = None, policy_id: str | None = None
    ) -> None:
        super().__init__(code, message, remedy=remedy)
        self.policy_id = policy_id


class ApprovalRequiredError(DeniedError):
    """A person has to approve the call first. `pending` is the request for approval, None if nobody can be asked."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        remedy: str | None = None,
        policy_id: str | None = None,
        pending: object | None = None,
    ) -> None:
        super().__init__(code, message, remedy=remedy, policy_id=policy_id)
        self.pending = pending


class RevokedError(DeniedError):
    """The principal, a session, a grant or an agent above this call was revoked."""


class CredentialError(AgentIdentityError):
    """No credential for the resource could be obtained."""


class CredentialUnavailableError(CredentialError):
    """The issuer could not be reached or was busy. `retry_after` is its Retry-After in seconds, if it sent one."""

    retryable = True

    def __init__(
        self,
        code: str,
        message: str,
        *,
        remedy: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(code, message, remedy=remedy)
        self.retry_after = retry_after


class CredentialRejectedError(CredentialError):
    """The issuer refused, or its answer can't be accepted. Asking again won't help."""


class VerificationError(AgentIdentityError):
    """Signed data failed a check; `code` says which rule. Use none of its claims."""


class InvalidSubjectError(VerificationError):
    """The principal's token failed a check, so no session opened."""


class InvalidAssertionError(VerificationError):
    """A delegation chain or a call's assertion failed a check."""


class LedgerError(AgentIdentityError):
    """A record could not be written or read. A tool whose intent is not on record did not run."""


class TransportError(AgentIdentityError):
    """The network failed, or the peer answered outside the limits (deadline, size, redirect, encoding)."""

    retryable = True


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception was raised by a signal handler, or isn't an `Exception` at all.

    An exception that another thread injects (`PyThreadState_SetAsyncExc`) looks like any failure.
    """
    if not isinstance(error, Exception):
        return True
    handlers = _handler_codes()
    if not handlers:
        return False
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def _handler_codes() -> set[CodeType]:
    """The code of every installed signal handler that is written in Python."""
    codes = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()}
    return {code for code in codes if code is not None}


def _code_of(handler: object) -> CodeType | None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    if isinstance(handler, MethodType):
        handler = handler.__func__
    if not isinstance(handler, FunctionType):
        handler = vars(type(handler)).get("__call__")
    return handler.__code__ if isinstance(handler, FunctionType) else None


CODES: Final = frozenset(
    """
    access_denied actor_mismatch actor_profile actor_repeated agent_is_issuer agent_name
    agent_revoked alg_not_allowed already_expired ambiguous_reference anchor_keys
    anchor_repeated anchor_unavailable answered_by_another approval_by_actor approval_required
    args_malformed args_mismatch ask_unknown assertion_missing assertion_opaque
    attribute_settled audience_mismatch audience_missing audience_widened authorities_unusable
    authorization_details authorization_pending autonomous_not_allowed bad_signature
    before_start bind_generator binding_ignored binding_mismatch binding_missing blocking_call
    body_limit body_mismatch body_timeout body_too_large body_too_slow body_unbound cache_key
    call_changed call_ended call_repeated call_reused call_running callback_repeated
    carrier_malformed carrier_unsuitable certificate_expired certificate_unusable chain_empty
    chain_malformed chain_missing chain_too_deep chain_too_large chain_too_long claim_malformed
    claim_mismatch claim_missing client_key_missing client_mismatch client_missing
    client_revoked client_unknown clock_failed config_exists config_malformed config_missing
    config_relative config_unreadable config_unsafe config_unwritable connection_owned
    consent_required constant_changed constraint_unknown credential_bound credential_cycle
    deadline_exceeded depth_exceeded depth_mismatch detail_type_unknown details_exceeded
    details_missing details_need_call details_not_configured details_not_granted details_unseen
    details_widened digest_malformed digest_unknown dpop_key dpop_method dpop_nonce dpop_stale
    dpop_token dpop_url encoded_body endpoint_malformed endpoint_missing endpoint_origin
    endpoint_unsafe everything_revoked evidence evidence_exceeded evidence_too_low
    evidence_unknown exchange_failed expired expired_login_hint_token expired_token expires_in
    extra_missing foreign_metadata_server foreign_principal foreign_session foreign_token_url
    foreign_url grant_mismatch grant_revoked grant_unknown handed_over handover_key
    handover_mismatch handover_missing handover_resources handover_scopes header_late
    header_malformed header_refused header_repeated header_too_large hidden_body
    history_contended hop_malformed identity_closed inactive insecure_url instance_mismatch
    insufficient_scope insufficient_user_authentication interaction_failed interaction_required
    interaction_timeout interaction_without_principal interrupted invalid_authorization_details
    invalid_binding_message invalid_client invalid_client_metadata invalid_dpop_proof
    invalid_grant invalid_request invalid_request_uri invalid_scope invalid_target invalid_token
    invalid_user_code issued_before_start issuer_ambiguous issuer_busy issuer_malformed issuer_mismatch
    issuer_missing issuer_not_named issuer_unavailable issuer_unknown issuer_unreachable issuer_unused
    json_duplicate_name json_lone_surrogate json_malformed json_not_object json_not_utf8
    json_number json_too_deep key_ambiguous key_malformed key_mismatch key_missing key_private
    key_renewed key_unknown key_unusable key_unused key_weak keyring_missing keyring_unusable
    kind_missing leaf_mismatch ledger_busy ledger_closed ledger_durability ledger_forked
    ledger_moved ledger_schema ledger_unreadable ledger_unwritable ledger_url lifetime_empty
    lifetime_exceeded lifetime_too_long lifetime_widened login_required malformed_answer
    malformed_base64 malformed_claim malformed_grant malformed_header malformed_keys
    malformed_revocations malformed_token malformed_txn_token max_depth may_act
    mcp_credential_unsent message_mismatch metadata_document_unsupported metadata_incomplete metadata_missing
    method_mismatch missing_claim missing_user_code no_authority no_call no_certificate
    no_client_document no_directory no_issuer no_issuer_trusted no_ledger no_resource no_session
    no_state no_terminal no_token no_workload_api no_workload_identity nobody_to_ask
    nonce_mismatch not_configured not_connected not_for_sending not_introspectable not_json
    not_permitted not_revoked not_supported not_verified not_yet_valid opaque_token
    operator_required owner parameter_reserved parent_mismatch pin_missing pkce_unsupported
    policy_denied policy_failed policy_missing policy_undecided policy_unusable port_in_use
    principal_empty principal_malformed principal_outdated principal_revoked
    principal_unknown_there principal_unproven private_address profile_unknown program_not_run
    proof_mismatch proof_missing protected_twice protocol_unknown provider_option public
    public_url purpose query_mismatch record_malformed record_mismatch record_unreadable
    redirect_port_taken redirected reference_malformed reference_missing reference_read_only
    reference_unknown refresh_token_missing registration_unsupported registration_unusable
    relaxation_unknown replay_store_failed replay_store_full replayed request_incomplete
    request_malformed resource_malformed resource_mismatch resource_not_configured
    resource_not_granted resumed_by_another revocations_failed revocations_missing
    revocations_stale revoked rule_malformed rule_unmatched scheme_malformed scheme_unknown
    scope_malformed scope_narrowed scope_not_configured scope_not_granted scope_widened
    seal_broken secret_in_clear secret_missing secret_unreadable secret_unsafe secret_unwritable
    server_error server_unknown session_ended session_expired session_handed_over session_not_entered
    session_reused session_revoked session_suspended signer_missing skew slow_down
    spiffe_id_malformed spiffe_missing spiffe_socket spliced state_dir_relative state_mismatch
    state_not_private state_unusable step_up_unmet store_damaged store_unavailable
    subagent_unguarded subject_bound subject_client_mismatch subject_empty subject_erased
    subject_malformed subject_mismatch subject_not_vouched subject_token_in_clear
    subject_token_missing subject_unproven subjects task temporarily_unavailable token_audience
    token_expired token_file_missing token_file_unreadable token_host_malformed token_malformed
    token_mismatch token_missing token_path token_revoked token_too_large token_unbound token_unverified
    token_variable_missing tool_changed tool_hosted tool_malformed tool_mismatch tool_shadowed
    tool_undescribed tool_unguardable tool_unguarded tool_unknown tool_unpinned trigger
    trigger_principal trust_domain_malformed trust_domain_mismatch txn_malformed
    unauthorized_client undigestible_argument unknown_anchor unknown_error unknown_issuer
    unknown_key unknown_kind unknown_provider unknown_reference unknown_user_id unreadable_error
    unsafe_link unsupported_grant_type unsupported_response_type unsupported_token_type
    url_insecure url_malformed url_mismatch usage use_dpop_nonce username_malformed
    value_conflict value_malformed value_missing variable_malformed vault_conflict
    vault_forbidden vault_key_missing vault_key_unusable vault_login_refused vault_malformed
    vault_unconfigured workload_api workload_missing wrong_door wrong_token_type wrong_typ
    """.split()  # noqa: SIM905 - a list would take 400 lines
)
"""Every code that the library raises. docs/reference/errors.md says what each means, and a test keeps list, page and source equal.

An issuer's own code (RFC 6749 §5.2) is among them where a standard defines it; all others become `unknown_error`.
"""
