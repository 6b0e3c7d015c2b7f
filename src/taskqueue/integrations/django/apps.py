"""The Django application that brings `manage.py taskqueue_worker`."""

from django.apps import AppConfig


class TaskQueueConfig(AppConfig):
    """For INSTALLED_APPS."""

    name = "taskqueue.integrations.django"
    label = "taskqueue"
