-- Cleans up requests whose indexed deadline has passed. Included in other scripts.
local SUSPENSION = 'cs:park:{cs}:'

-- Returns the outbox entry of the task that waits for this request, if there is one; then whether the
-- task may still read the request.
local function waiting_for(id, task)
  local suspension = redis.call('HMGET', SUSPENSION .. task, 'number', 'queue', 'waits', 'ended')
  if not suspension[1] or suspension[4] == '1' then
    return nil, false
  end
  local waits = ' ' .. (suspension[3] or '') .. ' '
  local is_waited = string.find(waits, ' ' .. id .. ' ', 1, true)
  return is_waited and cjson.encode({ task, suspension[1], suspension[2] or '' }), true
end

-- Re-indexes a request with an extended deadline. Removes any other from the index; for an expired
-- request it adds the waiting task to the outbox, so that the task resumes.
-- Returns these entries of the outbox.
local function tidy(index, outbox, now, limit, retention)
  local entries, is_known = {}, {}
  local passed = redis.call('ZRANGEBYSCORE', index, '-inf', '(' .. whole(now), 'LIMIT', '0', limit)
  local function read(id)
    local state, at = status(id, now)
    local task = redis.call('HGET', REQUEST .. id, 'task') or ''
    local entry, is_readable = waiting_for(id, task)
    return state, at, entry, is_readable
  end
  for _, id in ipairs(passed) do
    local is_read, state, at, entry, is_readable = pcall(read, id)
    if not is_read then
      -- A record of another type has no state. It must not block the others.
      redis.call('ZREM', index, id)
    elseif state == 'open' then
      redis.call('ZADD', index, whole(at), id)
    else
      redis.call('ZREM', index, id)
      if not is_readable then
        redis.call('EXPIRE', REQUEST .. id, whole(math.ceil((at - now) / 1000) + tonumber(retention)))
      end
      if state == 'expired' and entry and not is_known[entry] then
        redis.call('ZADD', outbox, whole(now), entry)
        entries[#entries + 1], is_known[entry] = entry, true
      end
    end
  end
  return entries
end

