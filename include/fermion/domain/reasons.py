"""The one vocabulary for why something is as it is; logs, API, pages, reports and tests all use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Reason(StrEnum):
    """Why a job, a lease or a workload is in its phase. The comment says what is true of the world."""

    # pending
    CHECKING = "checking"  # the request is recorded; its references are being verified
    STAGING = "staging"  # image, data or code are still being fetched; the job keeps its place in the line
    MISCONFIGURED = "misconfigured"  # something the job names has gone since it was checked (pool, policy)
    OVER_LIMIT = "over_limit"  # a per-user or per-team limit or a GPU-hour budget is reached
    WAITING_FOR_QUOTA = "waiting_for_quota"  # the pool's (or its cohort's) GPUs are held by others
    WAITING_FOR_PLACEMENT = "waiting_for_placement"  # enough GPUs are free, but not on enough whole nodes
    WAITING_BEHIND_RESERVATION = "waiting_behind_reservation"  # starting now would delay the head of the line
    ABOUT_TO_PREEMPT = "about_to_preempt"  # victims were asked to end; their GPUs go to this job
    PREEMPTED = "preempted"  # it ran, a higher priority took its GPUs, it is back in line
    RETRYING = "retrying"  # its node or workload was lost; a fresh attempt is in line
    # revisions and replicas of services
    REVISION_STARTING = "revision_starting"  # its replicas are in line or starting; it gets no requests yet
    SERVING = "serving"  # requests are sent to it
    REPLACED = "replaced"  # another revision serves in its place
    ROLLED_BACK = "rolled_back"  # a rollout, or a person, decided against it
    FAILED_BEFORE = "failed_before"  # the same thing failed in the service while it waited for its turn
    NOT_WANTED = "not_wanted"  # fewer replicas are wanted than there are
    DRAINED = "drained"  # the router sends it nothing any more, and nothing is on its way
    REPLICA_ENDED = "replica_ended"  # its process is gone for good
    SERVICE_CLOSED = "service_closed"  # the service was taken down
    # running
    GRANTED = "granted"  # holds a lease; its process has not been seen yet
    TRAINING = "training"  # its process is alive under a lease
    STOP_REQUESTED = "stop_requested"  # somebody asked it to end; the process still lives
    SAVING = "saving"  # the process ended well, the lease is closed, the model is being published
    # completed
    MODEL_PUBLISHED = "model_published"  # the model version is in the repository with its manifest
    # failed
    CHECK_REFUSED = "check_refused"  # the request had problems; it never joined the line
    STOPPED = "stopped"  # a person or program stopped it
    QUEUE_TIMEOUT = "queue_timeout"  # waited longer than its queue timeout
    START_TIMEOUT = "start_timeout"  # held a lease but its process never started in time
    MAX_RUNTIME = "max_runtime"  # ran longer than it asked for
    HANG = "hang"  # alive, but no progress in many times its usual step
    OUT_OF_MEMORY = "out_of_memory"  # crossed its memory limit and was ended
    USER_CODE = "user_code"  # the training code exited with an error
    KILLED = "killed"  # a signal that nobody here sent ended the process
    WORKLOAD_LOST = "workload_lost"  # the workload vanished without an exit record
    STAGING_FAILED = "staging_failed"  # image, data or code could not be fetched
    SAVE_FAILED = "save_failed"  # the model could not be published
    NO_MODEL = "no_model"  # the training ended well but wrote no output files
    RUN_ENDED = "run_ended"  # the workflow run ended, was deleted or was marked failed by hand


@dataclass(frozen=True, slots=True)
class Explanation:
    """A reason with its sentence and the numbers in it. ``numbers`` holds JSON-ready values."""

    reason: Reason
    message: str
    numbers: Mapping[str, object] = field(default_factory=dict)
