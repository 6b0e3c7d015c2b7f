"""The gRPC door: the broker's operations as the services of proto/taskqueue/taskqueue.proto."""
