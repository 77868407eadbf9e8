"""The errors that a caller may meet. Each message says what was expected, what came, and what to do next."""


class EvensongError(Exception):
    """Base of every error raised on purpose; the command line prints its message and exits with `exit_code`."""

    exit_code = 2


class ConfigurationError(EvensongError):
    """A setting is missing, unknown or of the wrong type."""


class SourceError(EvensongError):
    """A source cannot be read: a missing file, a wrong column, an unreadable time, no rows."""


class StorageError(EvensongError):
    """A file, an object or a table under a URI is missing or cannot be written."""


class DamagedFileError(StorageError):
    """A file is there and is not what it should be; asking for it again does not help."""


class NothingToLearnError(EvensongError):
    """The run's `as_of` leaves too little data: before the first event, or no positive event in the training window."""


class StaleFeaturesError(EvensongError):
    """Features are older than the run or the request needs."""


class BundleError(EvensongError):
    """A bundle is incomplete, or a file of it does not have the hash that its manifest states."""


class RegistryError(EvensongError):
    """A model version, an alias or a ledger line is missing, or contradicts another."""


class UnknownVersionError(RegistryError):
    """There is no such model version, nor such an artifact of one."""


class UnusableReasonError(RegistryError):
    """A reason or comment that the ledger cannot hold: none, too long, or no text."""


class RequestNotFoundError(EvensongError):
    """No logged request has this id: it never came, was not in the sample, or its file has gone."""


class LaunchError(EvensongError):
    """A process that the launcher needs does not start, or a port that it needs is taken."""


class BusyError(EvensongError):
    """Another run holds what this one needs."""


class RefusedError(EvensongError):
    """A rule refused to go on: the work is sound, the answer is no."""

    exit_code = 1


class ValidationFailedError(RefusedError):
    """Too much of the night's data is bad; nothing is trained or promoted."""


class LeakFoundError(RefusedError):
    """The join that training uses shows what was not known at the time, or loses a row; nothing is trained."""


class PromotionRefusedError(RefusedError):
    """A gate or a person's earlier word forbids this move of an alias."""
