"""The integrations as they are meant to be used: no type checker has anything to say."""

from opentelemetry.sdk.trace import TracerProvider

from taskqueue import App, Fail, Retry
from taskqueue.integrations import opentelemetry, sentry

app = App()
opentelemetry.instrument(app)
opentelemetry.instrument(app, tracer_provider=TracerProvider(), join_trace=False)
sentry.instrument(app)
sentry.instrument(app, report_outcomes=(Retry, Fail), transactions=False)
