"""The gRPC door: the broker's operations as the services of proto/taskqueue/taskqueue.proto."""

import os

# gRPC's core writes lines of its own to stderr, one for each broken header that anybody sends.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
