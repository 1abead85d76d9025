-- Stores the result of a task that was suspended, and then marks the task as ended: `store_result.lua` and
-- `end.lua` in one step.
-- KEYS[1] the task's key, and Celery's channel of the same name
-- KEYS[2] the suspension record
-- KEYS[3] the index of open requests
-- ARGV    those of `store_result.lua`, then those of `end.lua`
-- Returns the withdrawn requests.
store_result({ KEYS[1] }, { ARGV[1], ARGV[2], ARGV[3], ARGV[4] })
return end_task({ KEYS[2], KEYS[3] }, { ARGV[5], ARGV[6], ARGV[7] })
