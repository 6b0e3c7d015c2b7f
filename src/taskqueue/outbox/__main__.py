"""`python -m taskqueue.outbox DSN`: runs a relay until SIGTERM or SIGINT."""

import argparse
import asyncio
import logging
import signal

from taskqueue.outbox.relaying import Relay


async def _run(options: argparse.Namespace) -> None:
    relay = Relay(options.dsn, options.url, batch=options.batch, poll_seconds=options.poll_seconds)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, relay.stop)
    await relay.run()


def main() -> None:
    """Run a relay with the options of this process."""
    parser = argparse.ArgumentParser(
        prog="python -m taskqueue.outbox",
        description="Send the tasks in a database's outbox to the broker. Its key is TQ_API_KEY.",
    )
    parser.add_argument("dsn", help="postgresql://… of the database")
    parser.add_argument("--url", help="tq://… of the broker; else TQ_URL, or this machine")
    parser.add_argument("--batch", type=int, default=500, help="tasks sent at once at most")
    parser.add_argument(
        "--poll-seconds", type=float, default=1.0, help="how often to look where nothing notifies"
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
