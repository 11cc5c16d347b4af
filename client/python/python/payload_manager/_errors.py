"""The exceptions of this package. All derive from :class:`PayloadError`; each carries one sentence for a person.

The native half looks them up here by name.
"""


class PayloadError(Exception):
    """Something that was asked of Payload Manager did not work."""


class InvalidArgument(PayloadError, ValueError):
    """What was asked can never be right."""


class NotFound(PayloadError, LookupError):
    """The payload, or stream, is unknown, deleted, expired or lost."""


class FailedPrecondition(PayloadError):
    """The payload's state forbids it, or its version is another than expected."""


class LeaseConflict(PayloadError):
    """Somebody holds a lease of the payload."""


class ResourceExhausted(PayloadError):
    """A tier, a table or a queue is full; it may be tried again."""


class DeadlineExceeded(PayloadError, TimeoutError):
    """The timeout passed first."""


class Unavailable(PayloadError):
    """The server cannot serve this now."""


class DataLoss(PayloadError):
    """The bytes are gone, or not what was committed."""


class ChecksumMismatch(DataLoss):
    """The bytes that were read are not the ones that were committed."""


class AlreadyExists(PayloadError):
    """The name is taken."""


class Unimplemented(PayloadError, NotImplementedError):
    """The server does not know this call."""


class InternalError(PayloadError):
    """A defect of the server."""


class ConnectionFailed(PayloadError, ConnectionError):
    """No connection could be made; nothing was sent."""


class ConnectionLost(PayloadError, ConnectionError):
    """The connection ended, and with it the session's leases; whether what was under way was done is unknown."""


class ContractBroken(PayloadError):
    """The server's answer is none that this client understands."""


class MappingFailed(PayloadError):
    """The payload's bytes cannot be reached from this process."""


class Forked(PayloadError, RuntimeError):
    """This process is a child of the one that connected, which alone may use the connection. Connect in the child."""


class Closed(PayloadError, ValueError):
    """The client, or subscription, was closed."""


class Released(PayloadError, BufferError, ValueError):
    """The lease was released, or the writer has ended: there are no new views of it."""


class ViewsAlive(PayloadError, BufferError):
    """Something could still write to the payload: delete the arrays and slices, then commit again."""
