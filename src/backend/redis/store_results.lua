-- Stores the results of tasks and publishes them. For each task, the first terminal result wins. A success
-- is final; a result of a message that was received later replaces a failure or a revocation.
-- Then marks the tasks that were suspended as ended: `end_task` of `end.lua`.
-- KEYS    for each result the task's key, and Celery's channel of the same name; the index of open requests;
--         the suspension record of each task that was suspended
-- ARGV    retention of the record and of the requests in seconds; for each result five: document, retention
--         in seconds (0: forever), reply channel ('': none), time when the message was received
--         ('': redelivered, or a later attempt), digest of a task that was suspended ('': another task)
-- Returns for each result 1 if it was stored, 0 if an earlier one stays, or the error; for a task that was
-- suspended its withdrawn requests
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

local count = (#ARGV - 2) / 5
local record = count + 1

local function finish(digest)
  record = record + 1
  local is_ended, reply = pcall(end_task, { KEYS[record], KEYS[count + 1] }, { ARGV[1], ARGV[2], digest })
  -- An error concerns this task only.
  return is_ended and reply or { err = type(reply) == 'table' and reply.err or tostring(reply) }
end

local replies = {}
for n = 1, count do
  local at = 5 * n - 2
  local reply = store(KEYS[n], ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
  local is_stored = type(reply) ~= 'table'
  if ARGV[at + 4] ~= '' then
    reply = is_stored and finish(ARGV[at + 4]) or reply
    record = is_stored and record or record + 1
  end
  replies[n] = reply
end
return replies
