#!lua
-- Stores what came of a task and rings its waiters. The first terminal result wins.
-- KEYS[1] the task's key, and Celery's channel of the same name
-- ARGV    document, seconds to keep it (0: for ever), reply channel ('' : none)
local terminal = { SUCCESS = true, FAILURE = true, REVOKED = true }

local stored = redis.pcall('GET', KEYS[1])
if type(stored) == 'string' then
  -- Celery writes the status first. Reading no further is cheap, and works at any depth.
  local status = string.match(stored, '^{%s*"status"%s*:%s*"([^"\\]*)"')
  if not status then
    local decoded, document = pcall(cjson.decode, stored)
    status = decoded and type(document) == 'table' and document['status']
  end
  if terminal[status or ''] then
    return 0
  end
end

if ARGV[2] == '0' then
  redis.call('SET', KEYS[1], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
end
redis.call('PUBLISH', KEYS[1], ARGV[1])
if ARGV[3] ~= '' then
  redis.call('PUBLISH', ARGV[3], ARGV[1])
end
return 1
