-- One row at most: whose tasks were moved here, and whether all of them are. `days` has, as pairs,
-- the first number of the old engine that fell into each day; `reached` its highest that was copied.
CREATE TABLE move (
    one         smallint PRIMARY KEY CHECK (one = 1),
    id          uuid NOT NULL DEFAULT gen_random_uuid(),
    source      text NOT NULL,
    folder      text NOT NULL,
    days        text NOT NULL DEFAULT '[]',
    reached     bigint NOT NULL DEFAULT 0,
    begun_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz
);

-- A broker looks before it joins; this stops the one that looked a moment too early.
CREATE FUNCTION refuse_half_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM taskqueue.move WHERE finished_at IS NULL) THEN
        RAISE EXCEPTION 'tasks are being moved to this database, and not all are there yet';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER half_moved BEFORE INSERT ON brokers
    FOR EACH ROW EXECUTE FUNCTION refuse_half_moved();
