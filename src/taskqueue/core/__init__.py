"""Words and rules of the queue: tasks, their life-cycle, errors, time and ids. No I/O."""
