-- Workers that were lost at a task since it was submitted or put back.
ALTER TABLE tasks ADD COLUMN losses integer NOT NULL DEFAULT 0;
ALTER TABLE archive ADD COLUMN losses integer NOT NULL DEFAULT 0;
