"""A backend for Django's Tasks framework, and the worker for it."""

from taskqueue.integrations.django.backend import TaskQueueBackend

__all__ = ["TaskQueueBackend"]
