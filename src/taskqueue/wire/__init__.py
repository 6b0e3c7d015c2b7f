"""What travels: the messages all doors share, and RESP without sockets."""
