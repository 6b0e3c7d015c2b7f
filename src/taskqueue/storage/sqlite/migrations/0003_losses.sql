-- Workers that were lost at a task since it was submitted or put back.
ALTER TABLE tasks ADD COLUMN losses INTEGER NOT NULL DEFAULT 0;
