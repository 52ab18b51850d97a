"""One libtorrent session, and the one thread that owns its alerts.

An alert is valid only until the next `pop_alerts`, so the thread turns each into plain values in `Swarm`,
under one lock, and wakes whoever waits for them. Nobody else pops.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import libtorrent as lt

from gdist.errors import (
    CorruptError,
    FilesystemError,
    GdistError,
    RequestError,
    SpaceError,
    StalledError,
    TransferError,
)
from gdist.events import Event, HashFailed, PeerBanned, PeerCount, TrackerAnswer
from gdist.sources.torrent.flushed import POLL_SECONDS, FlushWatch
from gdist.sources.torrent.options import DISK_BACK_END, TransferStats

_log = logging.getLogger(__name__)

_ALERT_WAIT_MS = 200  # how late a close may be noticed; alerts themselves end the wait at once
_FLUSH_WAIT_MS = int(POLL_SECONDS * 1000)
_STATS_SECONDS = 0.5
_MAX_ADDRESSES = 10_000  # of peers remembered as tried
_SHOWN_FAULTS = 3  # of peers, in the message of an error
_CLOSE_SECONDS = 5.0  # libtorrent says goodbye to trackers, for at most `stop_tracker_timeout`
_EXIT_SECONDS = 15.0
_LISTEN_SECONDS = 10.0
_NEXT_ADDRESS_SECONDS = 0.5  # one address of several may fail, such as v6 where there is none
_DHT_NODES = "dht.dht_nodes"
_QUEUED_WRITES = "disk.queued_write_bytes"


@dataclass(slots=True)
class Swarm:
    """What the alerts told so far; read and changed only with the session's lock held."""

    port: int = 0
    finished: int = 0  # pieces announced to `flush`, whether they are in the file yet or not
    flush: FlushWatch | None = None  # of the torrent whose pieces are read
    readable: deque[int] = field(default_factory=deque)  # verified and in the file
    events: deque[Event] = field(default_factory=deque)
    trackers: dict[str, TrackerAnswer] = field(default_factory=dict)
    tried: dict[str, str] = field(default_factory=dict)  # peer -> why it is not connected, or nothing
    hash_failures: int = 0
    banned: set[str] = field(default_factory=set)
    mirrors: dict[str, str] = field(default_factory=dict)  # web seed -> why it gives nothing
    met: bool = False  # somebody was there, however shortly
    listen_error: str = ""
    stats: TransferStats = field(default_factory=TransferStats)
    best_bytes: int = -1
    progress_seconds: float = field(default_factory=time.monotonic)
    metadata: bool = False
    metadata_error: str = ""
    checked: bool = False
    removed: bool = False
    woken: bool = False
    resume: dict[bytes, Any] | None = None  # the newest resume data, as libtorrent would save it
    reads: dict[int, bytes | str] = field(default_factory=dict)  # piece -> its bytes, or why there are none
    error: GdistError | None = None

    def evidence(self) -> str:
        """What was seen of the swarm, for the message of an error."""
        parts = [
            f"tracker {url} " + (f"answered with {a.peers} peers" if a.ok else f"failed: {a.message}")
            for url, a in self.trackers.items()
        ] or ["no tracker answered"]
        parts += [f"web seed {url} failed: {why}" for url, why in self.mirrors.items()]
        parts.append(f"{self.stats.dht_nodes} DHT nodes")
        faults = [f"{peer}: {why}" for peer, why in self.tried.items() if why]
        shown = f" ({', '.join(faults[-_SHOWN_FAULTS:])})" if faults else ""
        parts.append(f"{len(self.tried)} peers tried{shown}")
        return "; ".join(parts)


class Session:
    """A running session; `changed` is the lock of `swarm` and wakes whoever waits for it to change."""

    def __init__(self, settings: dict[str, object]) -> None:
        params = lt.session_params()
        params.settings = settings  # type: ignore[assignment]  # the stub lists every key as a TypedDict
        params.disk_io_constructor = DISK_BACK_END
        self.changed = threading.Condition()
        self.swarm = Swarm()
        session = lt.session(params)
        self._lt: lt.session | None = session
        # By default peers of the own network are in a class that no limit and no choking applies to.
        session.set_peer_class_filter(lt.ip_filter())
        del session
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gdist-torrent-alerts", daemon=True)
        self._thread.start()
        _running.add(self)

    def add(self, params: lt.add_torrent_params) -> lt.torrent_handle:
        """Adds a torrent and returns its handle."""
        assert self._lt is not None, "session is closed"
        return self._lt.add_torrent(params)

    def remove(self, handle: lt.torrent_handle) -> None:
        """Removes a torrent, leaving its files, and waits until it is gone."""
        assert self._lt is not None, "session is closed"
        with self.changed:
            self.swarm.removed = False
            self.swarm.flush = None  # it asks the torrent that goes
        self._lt.remove_torrent(handle)
        self.wait(lambda swarm: swarm.removed, 10)

    def wait(self, done: Callable[[Swarm], object], timeout_seconds: float | None) -> bool:
        """Waits until `done(swarm)` is true; False when the time ran out first.

        Raises:
            GdistError: libtorrent reported an error that ends the transfer.
        """
        with self.changed:
            self.changed.wait_for(lambda: done(self.swarm) or self.swarm.error, timeout_seconds)
            if self.swarm.error:
                raise self.swarm.error
            return bool(done(self.swarm))

    def check_listening(self, where: str) -> None:
        """Returns once it listens at one of the addresses of `where`, which it was made with.

        Raises:
            RequestError: at none of them.
        """
        self.wait(lambda swarm: swarm.port or swarm.listen_error, _LISTEN_SECONDS)
        if not self.wait(lambda swarm: swarm.port, _NEXT_ADDRESS_SECONDS):
            with self.changed:
                reason = self.swarm.listen_error or "no answer from the system"
            raise RequestError(f"cannot listen at {where}: {reason}", hint="choose another address or port")

    def close(self) -> None:
        """Ends the session and its thread; may be called again."""
        self._stop.set()
        session = self._lt
        if session is not None:
            session.post_session_stats()  # an alert, which ends the thread's wait
        del session
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        session = self._lt
        assert session is not None
        try:
            self._pump(session)
        except Exception as error:  # whatever it is: whoever waits must hear of it, or waits for ever
            _log.debug("the alert thread failed", exc_info=True)
            with self.changed:
                self.swarm.error = self.swarm.error or TransferError(
                    f"the torrent session failed: {type(error).__name__}: {error}",
                    hint="run the same command again; should it happen again, please report it",
                )
                self.changed.notify_all()
        self._lt = None
        del session  # the last reference: libtorrent shuts down here, off the caller's thread

    def _pump(self, session: lt.session) -> None:
        due = 0.0
        while not self._stop.is_set():
            session.wait_for_alert(_FLUSH_WAIT_MS if self._step_flush() else _ALERT_WAIT_MS)
            alerts = session.pop_alerts()
            if alerts:
                with self.changed:
                    for alert in alerts:
                        # Names and messages come from strangers, and libtorrent hands them on as they are.
                        with contextlib.suppress(UnicodeDecodeError):
                            record(self.swarm, alert)
                    self.changed.notify_all()
            if time.monotonic() >= due:
                session.post_torrent_updates()
                session.post_session_stats()
                due = time.monotonic() + _STATS_SECONDS

    def _step_flush(self) -> bool:
        """Sees to the pieces that may not be in the file yet; True while there are any."""
        with self.changed:
            flush = self.swarm.flush
            if flush is None:
                return False
            flush.step()
            return flush.busy


_running: weakref.WeakSet[Session] = weakref.WeakSet()  # a thread keeps its session alive


@atexit.register
def _leave() -> None:
    """Ends what was not closed in time: a thread inside libtorrent as Python ends aborts the process."""
    for session in tuple(_running):
        session.close()
        session._thread.join(_EXIT_SECONDS)


def record(swarm: Swarm, alert: lt.alert) -> None:
    """Takes over what an alert says; keeps no reference to it."""
    match alert:
        case lt.piece_finished_alert():
            if swarm.flush is not None:
                swarm.finished += 1
                swarm.flush.announced(int(alert.piece_index))
            swarm.progress_seconds = time.monotonic()
        case lt.cache_flushed_alert():
            if swarm.flush is not None:
                swarm.readable.extend(swarm.flush.flushed())
        case lt.state_update_alert():
            for status in alert.status:
                record_status(swarm, status)
        case lt.session_stats_alert():
            _record_counters(swarm, alert.values)
        case lt.read_piece_alert():
            failed = alert.error.value() != 0
            swarm.reads[int(alert.piece)] = alert.error.message() if failed else bytes(alert.buffer)
        case lt.save_resume_data_alert():
            if swarm.flush is not None and swarm.flush.asked:
                swarm.readable.extend(swarm.flush.state(alert.params.have_pieces))
                return
            # A copy: the parameters belong to the alert. The stub calls the dictionary an opaque entry.
            swarm.resume = cast("dict[bytes, Any]", lt.write_resume_data(alert.params))
        case lt.save_resume_data_failed_alert():
            if swarm.flush is not None:
                swarm.flush.state(())
        case lt.hash_failed_alert():
            swarm.met = True
            swarm.hash_failures += 1
            swarm.events.append(HashFailed(int(alert.piece_index)))
        case lt.peer_ban_alert():
            _record_ban(swarm, _address(alert))
        case lt.metadata_received_alert():
            swarm.metadata = True
        case lt.metadata_failed_alert():
            swarm.metadata_error = alert.error.message()
        case lt.torrent_checked_alert():
            swarm.checked = True
        case lt.torrent_removed_alert():
            swarm.removed = True
        case lt.listen_succeeded_alert():
            if alert.socket_type == lt.socket_type_t.tcp:
                swarm.port = swarm.port or alert.port
        case lt.listen_failed_alert():
            swarm.listen_error = alert.error.message()
        case lt.tracker_reply_alert() | lt.tracker_error_alert():
            _record_tracker(swarm, alert)
        case lt.peer_connect_alert() | lt.peer_disconnected_alert() | lt.peer_error_alert():
            if len(swarm.tried) < _MAX_ADDRESSES:
                lost = "" if isinstance(alert, lt.peer_connect_alert) else _text(alert.error.message)
                swarm.tried[_address(alert)] = lost
        case lt.url_seed_alert():
            swarm.mirrors[_text(alert.server_url)] = _text(alert.error_message) or _text(alert.error.message)
        case lt.file_error_alert() | lt.torrent_error_alert():
            swarm.error = swarm.error or _error(alert)
        case lt.alerts_dropped_alert():
            swarm.error = swarm.error or StalledError(
                "libtorrent dropped alerts because they were not read in time", hint="run the command again"
            )


def record_status(swarm: Swarm, status: lt.torrent_status) -> None:
    """Takes over a torrent's numbers."""
    waste = status.total_failed_bytes + status.total_redundant_bytes
    useful = status.total_payload_download - waste
    if useful > swarm.best_bytes:  # a peer that sends the same wrong piece for ever is no progress
        swarm.best_bytes = useful
        swarm.progress_seconds = time.monotonic()
    if (status.num_peers, status.num_seeds) != (swarm.stats.peers, swarm.stats.seeds):
        swarm.events.append(PeerCount(status.num_peers, status.num_seeds))
    swarm.met = swarm.met or status.num_peers > 0 or status.total_payload_download > 0
    swarm.stats = TransferStats(
        verified=status.total_done,
        download_rate=status.download_payload_rate,
        upload_rate=status.upload_payload_rate,
        downloaded=status.total_payload_download,
        uploaded=status.total_payload_upload,
        peers=status.num_peers,
        seeds=status.num_seeds,
        dht_nodes=swarm.stats.dht_nodes,
        disk_queue=swarm.stats.disk_queue,
        waste=waste,
        state=str(status.state).rpartition(".")[2],
    )


def _record_counters(swarm: Swarm, values: dict[str, int]) -> None:
    swarm.stats = replace(
        swarm.stats, dht_nodes=values.get(_DHT_NODES, 0), disk_queue=values.get(_QUEUED_WRITES, 0)
    )


def _record_tracker(swarm: Swarm, alert: lt.tracker_reply_alert | lt.tracker_error_alert) -> None:
    if isinstance(alert, lt.tracker_reply_alert):
        answer = TrackerAnswer(alert.tracker_url(), True, "", alert.num_peers)
    else:
        reason = _text(alert.failure_reason) or _text(alert.error.message)
        answer = TrackerAnswer(alert.tracker_url(), False, reason, 0)
    before = swarm.trackers.get(answer.url)
    if not answer.ok and before is not None and before.ok:
        return  # one of several announces (v4 and v6, v1 and v2); the tracker did answer
    swarm.trackers[answer.url] = answer
    if answer != before:
        swarm.events.append(answer)


def _record_ban(swarm: Swarm, peer: str) -> None:
    """Tells once of a peer: libtorrent does for each wrong block that it finds, in a hybrid or v2 torrent."""
    if peer not in swarm.banned:
        swarm.banned.add(peer)
        swarm.events.append(PeerBanned(peer))


def _text(get: Callable[[], str]) -> str:
    """What somebody else said, which may be no UTF-8 and then cannot be had from libtorrent."""
    try:
        return get()
    except UnicodeDecodeError:
        return "an answer that is not text"


def _address(alert: lt.peer_alert) -> str:
    host, port = alert.endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _error(alert: lt.file_error_alert | lt.torrent_error_alert) -> GdistError:
    """What a failed read or write, or a torrent that libtorrent gave up, is for the caller."""
    code = alert.error
    path = _text(alert.filename) if isinstance(alert, lt.file_error_alert) else ""
    text = f"{_text(code.message)}: {path}" if path else _text(code.message)
    if code.category().name() == lt.libtorrent_category().name():
        return CorruptError(f"libtorrent gave the torrent up: {text}")
    if code.value() in (errno.ENOSPC, errno.EDQUOT):
        return SpaceError(f"the payload cannot be written: {text}", hint="free some space and run again")
    return FilesystemError(f"the payload cannot be written: {text}", hint="check the directory's rights")
