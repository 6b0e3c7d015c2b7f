"""Mistakes in the use of the integrations: type checkers tell of each line with the mark."""

from taskqueue import App
from taskqueue.integrations import opentelemetry, sentry

app = App()
opentelemetry.instrument("app")  # error
opentelemetry.instrument(app, join_trace="no")  # error
sentry.instrument(app, report_outcomes=(ValueError,))  # error
sentry.instrument(app, False)  # error
