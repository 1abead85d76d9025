-- Stores the results of tasks and publishes them. For each task, the first terminal result wins. A success
-- is final; a result of a message that was received later replaces a failure or a revocation.
-- KEYS    for each result the task's key, and Celery's channel of the same name
-- ARGV    for each result four: document, retention in seconds (0: forever), reply channel ('': none), time
--         when the message was received ('': redelivered, or a later attempt)
-- Returns for each result 1 if it was stored, 0 if an earlier one stays, or the error
local terminal = { SUCCESS = true, FAILURE = true, REVOKED = true }

local function is_older(document, received)
  if received == '' then
    return false
  end
  local decoded, fields = pcall(cjson.decode, document)
  local done = decoded and type(fields) == 'table' and fields['date_done']
  -- Both are UTC in the same format, so a text comparison suffices.
  return type(done) == 'string' and done < received
end

local function is_final(stored, received)
  -- Celery writes the status first. Matching only the start is cheap and works at any nesting depth.
  local status = string.match(stored, '^{%s*"status"%s*:%s*"([^"\\]*)"')
  if not status then
    local decoded, document = pcall(cjson.decode, stored)
    status = decoded and type(document) == 'table' and document['status']
  end
  return terminal[status or ''] and (status == 'SUCCESS' or not is_older(stored, received))
end

local function store(key, document, retention, reply, received)
  local stored = redis.pcall('GET', key)
  if type(stored) == 'string' and is_final(stored, received) then
    return 0
  end
  local set
  if retention == '0' then
    set = redis.pcall('SET', key, document)
  else
    set = redis.pcall('SET', key, document, 'EX', retention)
  end
  if set.err then
    return set
  end
  redis.call('PUBLISH', key, document)
  if reply ~= '' then
    redis.call('PUBLISH', reply, document)
  end
  return 1
end

local replies = {}
for n, key in ipairs(KEYS) do
  local at = 4 * n
  replies[n] = store(key, ARGV[at - 3], ARGV[at - 2], ARGV[at - 1], ARGV[at])
end
return replies
