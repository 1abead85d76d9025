-- Status of approval requests. Included in other scripts.
local REQUEST, DECISION = 'cs:ask:{cs}:', 'cs:dec:{cs}:'
local NEW_REQUEST_CHANNEL = 'cs:asked'

local function now_in_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function whole(number)
  return string.format('%.0f', number)
end

-- Whether a decision record is about this request, and not about an earlier one with the same id:
-- `DecisionRecord::of` of lifecycle/decision_rules.rs. Fields of each: digest, nonce, time of the
-- request or decision.
local function is_about(request, record)
  if record[1] ~= request[1] then
    return false
  elseif request[2] and not record[2] then
    return record[3] and tonumber(record[3]) >= tonumber(request[3] or '0')
  end
  return record[2] == request[2]
end

-- Returns 'unknown', a choice, 'expired' or 'open'; then the time of the decision, or the deadline;
-- then whether the decision record is about this request.
local function status(id, now)
  local request = redis.call('HMGET', REQUEST .. id, 'digest', 'nonce', 'at', 'deadline', 'open')
  if not request[1] then
    return 'unknown', now, false
  end
  local record = redis.call('HMGET', DECISION .. id, 'digest', 'nonce', 'at', 'choice', 'deadline')
  local is_same = is_about(request, record)
  if is_same and record[4] then
    return record[4], tonumber(record[3]), is_same
  end
  if request[5] ~= '1' then
    return 'withdraw', now, is_same
  end
  local extended = is_same and tonumber(record[5] or '0') or 0
  -- A request that was renewed after the extension has its own deadline.
  local deadline = extended > tonumber(request[3] or '0') and extended or tonumber(request[4])
  if now > deadline then
    return 'expired', deadline, is_same
  end
  return 'open', deadline, is_same
end

-- Returns whether `by` is an approver, and whether they are the requester. Of the request: requester,
-- approvers.
local function roles(requester, approvers, by)
  local is_named = approvers == '' or string.find(approvers, '\n' .. by .. '\n', 1, true)
  return is_named, requester ~= '' and requester == by
end

-- Keeps votes, extensions and the decision until the deadline, and `seconds` longer.
local function keep(id, deadline, now, seconds)
  local left = math.max(deadline - now, 0)
  redis.call('EXPIRE', DECISION .. id, whole(math.ceil(left / 1000) + tonumber(seconds)))
end

-- Replaces the decision record of an earlier request by an empty one for this request.
local function start_record(id)
  local request = redis.call('HMGET', REQUEST .. id, 'digest', 'nonce')
  redis.call('DEL', DECISION .. id)
  redis.call('HSET', DECISION .. id, 'v', '1', 'digest', request[1])
  if request[2] then
    redis.call('HSET', DECISION .. id, 'nonce', request[2])
  end
end

-- The status of requests that this call of the script has read, or has just made.
local seen = {}

local function seen_status(id, now)
  if not seen[id] then
    seen[id] = { status(id, now) }
  end
  return unpack(seen[id])
end

-- Appends the outcomes of the requests that are not open: five texts each.
local function add_outcomes(result, ids, now)
  for id in string.gmatch(ids, '%S+') do
    local state, at, is_same = seen_status(id, now)
    if state ~= 'open' and state ~= 'unknown' then
      local document = is_same and redis.call('HGET', DECISION .. id, 'document')
      local digest = redis.call('HGET', REQUEST .. id, 'digest')
      local is_decided = state ~= 'expired' and document
      for _, text in ipairs({ id, digest, state, whole(at), is_decided and document or '' }) do
        result[#result + 1] = text
      end
    end
  end
  return result
end

-- Milliseconds until the first request or the alarm is due; 0: one is. An alarm of '0' is none.
local function due_in(ids, alarm, now)
  local nearest = alarm ~= '0' and tonumber(alarm) or nil
  for id in string.gmatch(ids, '%S+') do
    local state, deadline = seen_status(id, now)
    if state ~= 'open' then
      return 0
    end
    nearest = math.min(nearest or deadline, deadline)
  end
  return nearest and math.max(nearest - now + 1, 0) or 0
end
